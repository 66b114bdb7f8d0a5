"""How much memory and disk this process may still take."""

from __future__ import annotations

import shutil
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
"""Version 2 and version 1 of control groups, as seen from inside a container: limit, use, and its parts."""


def memory_bytes() -> int | None:
    """Bytes that may still be allocated: what the machine has, less where a container's limit is tighter.

    Page cache counts as free: it is given up when memory is asked for. None where the platform does not tell.
    """
    found = [value for value in (_of_machine(), *(_of_group(*paths) for paths in _CGROUPS)) if value is not None]
    return min(found, default=None)


def disk_bytes(folder: Path) -> int:
    """Free bytes on the disk that `folder` is on, or will be."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_group(limit: Path, used: Path, parts: Path) -> int | None:
    try:
        allowed = limit.read_text().strip()
        if allowed == "max":
            return None
        words = dict(line.split() for line in parts.read_text().splitlines())
        cache = int(words.get("inactive_file", 0)) + int(words.get("active_file", 0))
        return max(0, int(allowed) - int(used.read_text()) + cache)
    except (OSError, ValueError):
        return None
