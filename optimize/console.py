"""The only place that prints: progress and problems to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: str) -> str:
    """Text that came from a model, a file or a user, made safe to show: control characters escaped."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def rich_console(stream: IO[str] | None = None) -> Console:
    """A rich console that is plain when its stream is not a terminal."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())


def out(text: str = "") -> None:
    """A line of result, to stdout."""
    sys.stdout.write(printable(text) + "\n")


def out_document(text: str) -> None:
    """A whole document to stdout as it is; its writer has escaped what is foreign, by the format's own rules."""
    sys.stdout.write(text)


def out_json(data: Any) -> None:
    """A result for machines, to stdout; characters that steer a terminal as JSON's own escapes."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if not text.replace("\n", "").isprintable():
        text = "".join(item if item.isprintable() or item == "\n" else json.dumps(item)[1:-1] for item in text)
    sys.stdout.write(text + "\n")


def err(text: str) -> None:
    """A line about how things go, to stderr."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()
