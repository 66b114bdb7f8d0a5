"""Taking a process's right to write into the store, through Linux's Landlock; elsewhere nothing happens.

Landlock grants rights below folders and takes all others, so everything beside the way to the store is granted:
for /home/me/store, all that lies in / but for home, all in /home but for me, and so on. New files directly in a
folder on that way (/, /home, /home/me) cannot be made either; existing folders there are as before.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_OLDEST = 3
"""Version 2 brought renames between folders, version 3 truncating; without them too much or too little is held."""

_FILE = 1 << 1 | 1 << 14  # write to, truncate
_FOLDER = _FILE | 1 << 4 | 1 << 5 | sum(1 << bit for bit in range(6, 13)) | 1 << 13  # remove, make, rename between


class _Ruleset(ctypes.Structure):
    _fields_ = [("handled_access_fs", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def protect(store: Path, writable: Sequence[Path]) -> bool:
    """Forbid this thread, and all that it starts, to write below `store` except in `writable`; for good.

    Returns:
        Whether the platform could do it.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG) < _OLDEST:
        return False
    attributes = _Ruleset(_FOLDER)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path in (*_beside(store.resolve()), *writable):
            _allow(libc, ruleset, path)
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _beside(store: Path) -> Iterator[Path]:
    """Everything that lies beside the folders on the way to the store."""
    way = [*reversed(store.parents), store]
    for folder, step in itertools.pairwise(way):
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        yield from (Path(entry.path) for entry in entries if entry.name != step.name and not entry.is_symlink())


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _Beneath(_FOLDER if path.is_dir() else _FILE, handle)
        libc.syscall(_ADD_RULE, ruleset, _BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(handle)
