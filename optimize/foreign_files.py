"""Small files that somebody else may have made: plain files of bounded size, JSON of bounded depth."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Levels of lists and mappings in JSON; what goes through them calls itself for each."""

LARGEST_REPORT = 256_000_000
"""Bytes: a report holds figures, not weights; a larger file is something else."""

LARGEST_WHOLE = 2**64
"""Counts and sizes are below; Python's whole numbers have no end, and its divisions by one then fail."""


def content(path: Path, at_most: int) -> bytes:
    """The bytes of a plain file.

    A pipe would be waited for, and a device such as /dev/zero read for ever, whatever size it states.

    Raises:
        OSError: When it cannot be opened, is no plain file or has more than `at_most` bytes; `strerror` says which.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(at_most + 1)
    finally:
        os.close(handle)
    if len(data) > at_most:
        raise OSError(errno.EFBIG, f"it has more than {at_most:,} bytes", str(path))
    return data


def json_data(text: str | bytes) -> Any:
    """JSON as plain data.

    Raises:
        ValueError: When it is none, is nested more than `DEEPEST` levels deep, or holds a whole number of more than
            64 bits.
    """
    try:
        data = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [data]
    for _ in range(DEEPEST):
        level = [inner for item in level for inner in _inner(item)]
        if not level:
            return data
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"nested more than {DEEPEST} levels deep"


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= 21 else LARGEST_WHOLE + 1
    if abs(number) > LARGEST_WHOLE:
        raise ValueError(f"the whole number {digits[:24]}… has more than 64 bits")
    return number


def _inner(item: Any) -> list[Any]:
    """The lists and mappings directly within one."""
    inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [part for part in inside if isinstance(part, dict | list)]
