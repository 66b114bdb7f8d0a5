"""Content digests: what a stage's key is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def of_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal; memory stays at one MiB whatever the file's size."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def of_data(data: Any) -> str:
    """sha256 of JSON-ready data in canonical form: sorted keys, no spaces, Python's names of infinities and NaN."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class FileDigests:
    """Digests of files, remembered by (path, size, modification time, inode) so that 14 GB are read once.

    Args:
        memory: A JSON file to remember in; it may be missing or damaged, which only costs time.
    """

    _SMALL = 1 << 20

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, str] = {}
        self._is_changed = False
        try:
            loaded = json.loads(memory.read_text())
            self._known = {str(key): str(value) for key, value in loaded.items()}
        except (OSError, ValueError, AttributeError):
            self._known = {}

    def of(self, path: Path) -> str:
        """The file's sha256. Small files are always read: their content can change within a clock tick."""
        stat = path.stat()
        if stat.st_size <= self._SMALL:
            return of_file(path)
        identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if identity not in self._known:
            self._known[identity] = of_file(path)
            self._is_changed = True
        return self._known[identity]

    def of_all(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Digests by the given labels; a folder is digested file by file, in name order."""
        found: dict[str, str] = {}
        for label, path in paths.items():
            if path.is_dir():
                inside = sorted(item for item in path.rglob("*") if item.is_file())
                found[label] = of_data([[str(item.relative_to(path)), self.of(item)] for item in inside])
            elif path.is_file():
                found[label] = self.of(path)
            else:
                found[label] = "missing"
        return found

    def keep(self) -> None:
        """Write what was learned, best effort: the store works without it."""
        if not self._is_changed:
            return
        from optimize.pipeline.files import write_atomically

        try:
            write_atomically(self._memory, json.dumps(dict(sorted(self._known.items())[-4096:])).encode())
        except OSError:
            return
        self._is_changed = False
