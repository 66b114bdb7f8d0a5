"""Peak memory of this process, by the kernel's own book-keeping."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Writing 5 to clear_refs resets VmHWM to what is resident now (proc(5))."""


def peak_of_current_process() -> int | None:
    """Peak resident memory in bytes since the start or the last reset; None where it cannot be had."""
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _peak_by_getrusage()


def reset_peak() -> bool:
    """Start counting the peak anew from what is resident now; False where the system does not allow it."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK)
        return True
    return False


def _peak_by_getrusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
