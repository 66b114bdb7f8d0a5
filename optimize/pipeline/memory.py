"""Peak anonymous memory of this process: what the machine must really have, page cache not counted."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_PERIOD_S = 0.02


class AnonymousPeak:
    """Samples the process's anonymous memory while it is entered, every 20 ms.

    A peak that comes and goes while one call holds the interpreter's lock can be missed.

    Attributes:
        peak_bytes: The highest value seen; None where the platform does not tell.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        now = anonymous_bytes()
        if now is not None:
            self.peak_bytes = max(self.peak_bytes or 0, now)


def anonymous_bytes() -> int | None:
    """Anonymous resident memory now, in bytes (`RssAnon` of proc(5)); None where there is no /proc."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None
