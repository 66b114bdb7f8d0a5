"""Progress on stderr: a live display on a terminal, a line a step elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from optimize import console
from optimize.cli.settings import settings

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from optimize.facts import StageRecord

LINE_EVERY_S = 30.0
"""Where there is no terminal, a long step says this often how far it is."""

_BYTES_FROM = 10_000_000
"""Counts this large are bytes; nothing else that steps count comes near."""

_MARKS = {"done": "✓", "reused": "↺", "failed": "✗", "not run": "·"}


class RunProgress:
    """Watches a run (`optimize.pipeline.executing.Watcher`)."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._what = ""
        self._began = (0.0, 0)
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if not settings.quiet and sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Remaining

            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                Remaining(compact=True),
                console=console.rich_console(sys.stderr),
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, stage: str) -> None:
        """A step begins."""
        self._stage, self._what = stage, ""
        self._last_line = time.monotonic()
        if self._live is not None:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(stage, total=None, count="")

    def progress(self, what: str, done: int, total: int) -> None:
        """A step goes on; time left is told from the speed of this part of the step alone."""
        if what != self._what:
            self._what, self._began = what, (time.monotonic(), done)
            if self._live is not None and self._task is not None:
                self._live.reset(self._task)
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task,
                description=console.printable(f"{self._stage}: {what}"),
                completed=done,
                total=total or None,
                count=counted(done, total),
            )
        elif not settings.quiet and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = seconds_left(time.monotonic() - self._began[0], done - self._began[1], total - done)
            rest = f", about {left:.0f} s left" if left is not None else ""
            console.err(f"  {self._stage}: {console.printable(what)} {counted(done, total)}{rest}")

    def finished(self, record: StageRecord) -> None:
        """A step ended; one line stays on the screen."""
        if settings.quiet:
            return
        memory = record.peak_anonymous_bytes
        figures = f"{record.seconds:7.1f} s"
        if memory:
            figures += f"  {memory / 1e6:7.0f} MB"
        if record.outcome == "reused":
            figures += "  (reused)"
        line = (
            f"{_MARKS[record.outcome]} {record.name:<22} {figures if record.outcome != 'failed' else ''}".rstrip()
        )
        if self._live is not None:
            self._live.console.print(line)
        else:
            console.err(line)


def counted(done: int, total: int) -> str:
    """ "12/70", "120/289 MB", "" when nothing is counted."""
    if not total:
        return ""
    if total >= _BYTES_FROM:
        return f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"
    return f"{done}/{total}"


def seconds_left(elapsed: float, done: int, left: int) -> float | None:
    """Time for what is left at the speed so far; None before there is one."""
    return elapsed / done * left if done > 0 and elapsed > 0 and left >= 0 else None


class StepProgress:
    """Progress of one long call: (what, done, total), at most twice a second where there is no terminal."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it."""
        now = time.monotonic()
        if settings.quiet or not sys.stderr.isatty() or now - self._last < 0.2:
            return
        self._last = now
        share = f" {done}/{total}" if total else ""
        sys.stderr.write(f"\r\x1b[K{console.printable(what)}{share}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if not settings.quiet and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
