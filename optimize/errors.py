"""Errors that a user reads: what happened, where, what to do. Each kind has its exit code.

Anything else that escapes is a defect of ours and ends with `INTERNAL`, never with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

PASSED = 0
GATE_FAILED = 1
USAGE = 2
MISSING = 3
STAGE_FAILED = 4
INTERNAL = 70
INTERRUPTED = 130
PIPE_CLOSED = 141
"""As the shell reports a program whose reader went away (128 + SIGPIPE)."""


class OptimizeError(Exception):
    """An error with a sentence for the user and an exit code.

    Args:
        message: What happened and where, one line.
        hint: What to do about it, one line; empty when the message says it all.
    """

    exit_code: ClassVar[int] = STAGE_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(OptimizeError):
    """The command line, a file named on it, or input data is wrong."""

    exit_code = USAGE


class Fault:
    """One thing wrong in a recipe: where and what.

    Args:
        path: The key's path, "passes[2].fuse.attention.expect".
        message: What is wrong, with a did-you-mean where one fits.
        file: File name as the user gave it; "" when not from a file.
        line: 1-based line; 0 when unknown.
        column: 1-based column; 0 when unknown.
    """

    def __init__(self, path: str, message: str, *, file: str = "", line: int = 0, column: int = 0) -> None:
        self.path, self.message, self.file, self.line, self.column = path, message, file, line, column

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.file and self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class RecipeError(UsageError):
    """A recipe with every fault found in it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class BackendMissing(OptimizeError):
    """A library, device or provider that the recipe needs is not here."""

    exit_code = MISSING


class StageFailed(OptimizeError):
    """A step of the run could not do its work."""

    exit_code = STAGE_FAILED


KINDS: dict[str, type[OptimizeError]] = {kind.__name__: kind for kind in (UsageError, BackendMissing, StageFailed)}
"""Kinds that a child process may report back to its parent by name."""
