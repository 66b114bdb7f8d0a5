"""How fast this machine is right now, in half a second at most: hashing, reading, writing, interpreting."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from optimize.pipeline import room

PART_S = 0.06
"""Longest that one measurement goes on."""

COLD_S = 0.3
"""Longest that reading from the disk itself is measured: the first pieces often come from a cache in the drive."""

CACHED_SHARE = 0.5
"""Files above this share of the free memory are not expected to be cached when the next step reads them."""

_PIECE = 1 << 21
_LOOP = 100_000
_LOOP_S = 0.0031
"""Time of the loop in `_slowdown` on the machine that `estimate`'s constants were measured on, idle."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Bytes a second of each kind of work, measured just now under the load there is.

    Attributes:
        digest: sha256.
        scan: Looking for NaN in float16.
        read: Pieces all over the given file, from the page cache or the disk as the steps will find them.
        write: Into the given folder, flushed to the disk.
        slowdown: How much slower Python runs than where the constants were measured.
    """

    digest: float
    scan: float
    read: float
    write: float
    slowdown: float


def measure(file: Path, folder: Path) -> Speed:
    """Measure, with `file` to read from and `folder`, or the nearest one that exists, to write to."""
    block = bytes(_PIECE)
    return Speed(
        digest=_rate(lambda: hashlib.sha256(block)),
        scan=_scan(),
        read=_read(file, room.memory_bytes()),
        write=_write(room.existing(folder), block),
        slowdown=_slowdown(),
    )


def _rate(work: object, pieces: int = 4) -> float:
    assert callable(work)
    started = time.perf_counter()
    for _ in range(pieces):
        work()
    return pieces * _PIECE / (time.perf_counter() - started)


def _scan() -> float:
    from optimize.sources import nan

    numbers = np.zeros(_PIECE // 2, np.float16)
    return _rate(lambda: nan.count(numbers))


def _read(file: Path, free: int | None) -> float:
    """Bytes a second; from the disk itself when the file is too large to stay in the page cache between steps."""
    size = file.stat().st_size
    is_cold = free is not None and size > free * CACHED_SHARE and hasattr(os, "posix_fadvise")
    longest = COLD_S if is_cold else PART_S
    places = np.random.default_rng(0).integers(0, max(1, size - _PIECE), 256 if is_cold else 24)
    piece = bytearray(_PIECE)
    started, got = time.perf_counter(), 0
    with file.open("rb", buffering=0) as stream:
        for place in places:
            if is_cold:
                os.posix_fadvise(stream.fileno(), int(place), _PIECE, os.POSIX_FADV_DONTNEED)
            stream.seek(int(place))
            got += stream.readinto(piece)
            if time.perf_counter() - started > longest:
                break
    return max(got, 1) / (time.perf_counter() - started)


def _write(folder: Path, block: bytes) -> float:
    """Bytes a second; infinite where nothing can be written (the store says so in its own words)."""
    started, put = time.perf_counter(), 0
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            while time.perf_counter() - started < PART_S and put < 1 << 26:
                put += os.write(stream.fileno(), block)
                os.fdatasync(stream.fileno())
    except OSError:
        return float("inf")
    return put / (time.perf_counter() - started)


def _slowdown() -> float:
    started = time.perf_counter()
    found: dict[int, str] = {}
    for number in range(_LOOP):
        found[number & 255] = "x"
    return (time.perf_counter() - started) / _LOOP_S
