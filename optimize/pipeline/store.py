"""The store: finished stages under the sha256 of everything that went in. Nothing half-written is ever visible.

Layout: `objects/ab/<key>/` holds one finished stage with its `entry.json`; `tmp/<key>-<random>/` one that is
being computed; `locks/ab.lock` guards the keys that begin with "ab". A workspace whose lock is free was left
by a process that died, and is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import filelock
import pydantic

from optimize.errors import StageFailed, UsageError
from optimize.pipeline import digests, files

ENTRY = "entry.json"
_LAYOUT = 1
_YEAR_10000_S = 253_402_300_800.0


class _File(pydantic.BaseModel):
    size: int
    mtime_ns: int


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    made_at: float = pydantic.Field(ge=0, lt=_YEAR_10000_S)
    seconds: float = 0.0


class _Stored(pydantic.BaseModel):
    """What `entry.json` holds."""

    layout: Literal[1]
    key: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    stage: str = pydantic.Field(pattern="^[a-z ]+$")
    facts: dict[str, Any]
    inputs: dict[str, Any]
    record: _Record
    files: dict[str, _File]
    dependencies: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One finished stage.

    Attributes:
        key: sha256 of everything that went in.
        stage: The stage's name.
        directory: Where its files are; read only.
        facts: What the stage found out, JSON data.
        inputs: What went into the key, for `optimize cache explain`.
        record: Wall seconds, peak memory, when it was made.
    """

    key: str
    stage: str
    directory: Path
    facts: Mapping[str, Any]
    inputs: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return _size_bytes(self.directory)


class Store:
    """A content-addressed store in a folder.

    Raises:
        UsageError: When the folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for part in ("objects", "tmp", "locks"):
                (root / part).mkdir(parents=True, exist_ok=True)
            probe = tempfile.NamedTemporaryFile(dir=root / "tmp", prefix=".probe-")  # noqa: SIM115
            probe.close()
        except OSError as error:
            raise UsageError(
                f"store '{root}' cannot be written: {error.strerror}.",
                hint="Choose another folder with --store or OPTIMIZE_STORE.",
            ) from error
        self.digests = digests.FileDigests(root / "digests.json")

    def lookup(self, key: str) -> Entry | None:
        """The finished stage under `key`, or None when there is none or it was tampered with."""
        directory = self._object(key)
        try:
            stored = _read(directory)
            for name, known in stored.files.items():
                stat = (directory / name).stat()
                if stat.st_size != known.size or stat.st_mtime_ns != known.mtime_ns:
                    return None
            for path, digest in stored.dependencies.items():
                if digests.of_file(Path(path)) != digest:
                    return None
        except (OSError, ValueError):
            return None
        return _entry(stored, directory)

    @contextlib.contextmanager
    def lock(self, key: str, *, on_wait: Any = None) -> Iterator[None]:
        """Hold the right to compute `key`; `on_wait()` is called once when another process holds it."""
        lock = filelock.FileLock(self.root / "locks" / f"{key[:2]}.lock")
        try:
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if on_wait is not None:
                    on_wait()
                lock.acquire()
        except OSError as error:
            raise StageFailed(f"store '{self.root}' is no longer there: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()

    def workspace(self, key: str) -> Path:
        """A fresh folder to compute `key` in; call with its lock held. Left-overs of dead runs go first."""
        self._remove_workspaces(key)
        return Path(tempfile.mkdtemp(prefix=f"{key}-", dir=self.root / "tmp"))

    def publish(
        self,
        key: str,
        stage: str,
        workspace: Path,
        *,
        facts: Mapping[str, Any],
        inputs: Mapping[str, Any],
        record: Mapping[str, Any],
        dependencies: Mapping[str, str],
    ) -> Entry:
        """Make a finished workspace visible under its key, all at once; call with its lock held."""
        listed: dict[str, dict[str, Any]] = {}
        for item in sorted(workspace.rglob("*")):
            if item.is_file():
                item.chmod(0o444)
                stat = item.stat()
                name = str(item.relative_to(workspace))
                listed[name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        data: dict[str, Any] = {
            "layout": _LAYOUT,
            "key": key,
            "stage": stage,
            "facts": facts,
            "inputs": inputs,
            "record": {**record, "made_at": time.time()},
            "files": listed,
            "dependencies": dict(dependencies),
        }
        (workspace / ENTRY).write_text(json.dumps(data, indent=1))
        files.sync_tree(workspace)
        destination = self._object(key)
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            self._discard(destination)
        os.rename(workspace, destination)
        return Entry(key, stage, destination, facts, inputs, data["record"])

    def abandon(self, workspace: Path) -> None:
        """Remove a workspace whose stage failed."""
        shutil.rmtree(workspace, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """Every finished stage, oldest first; damaged ones are left out."""
        found = []
        for directory in self._objects():
            with contextlib.suppress(OSError, ValueError):
                found.append(_entry(_read(directory), directory))
        return sorted(found, key=lambda entry: float(entry.record["made_at"]))

    def damaged(self) -> list[Path]:
        """Where something lies that is no finished stage, or no longer one; no run uses it."""
        found = []
        for directory in self._objects():
            try:
                _read(directory)
            except (OSError, ValueError):
                found.append(directory)
        return found

    def remove(self, directory: Path) -> int:
        """Remove one finished stage, or what is left of one; bytes freed."""
        size = _size_bytes(directory)
        with self.lock(directory.name):
            self._discard(directory)
        return size

    def sweep(self) -> int:
        """Remove workspaces that dead processes left; how many."""
        removed = 0
        for workspace in sorted((self.root / "tmp").iterdir()):
            key = workspace.name.partition("-")[0]
            lock = filelock.FileLock(self.root / "locks" / f"{key[:2]}.lock")
            try:
                with lock.acquire(timeout=0):
                    shutil.rmtree(workspace, ignore_errors=True)
                    removed += 1
            except filelock.Timeout:
                continue
        return removed

    def _objects(self) -> list[Path]:
        return sorted((self.root / "objects").glob("??/*"))

    def _object(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def _remove_workspaces(self, key: str) -> None:
        for workspace in (self.root / "tmp").glob(f"{key}-*"):
            shutil.rmtree(workspace, ignore_errors=True)

    def _discard(self, directory: Path) -> None:
        """Take a folder out of sight in one step, then delete it."""
        hidden = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=self.root / "tmp"))
        os.rename(directory, hidden / "old")
        shutil.rmtree(hidden, ignore_errors=True)


def _read(directory: Path) -> _Stored:
    """The entry of a finished stage.

    Raises:
        OSError: When there is none.
        ValueError: When it is damaged, lies in the wrong place or is of another layout.
    """
    try:
        stored = _Stored.model_validate(json.loads((directory / ENTRY).read_bytes()))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if stored.key != directory.name or stored.key[:2] != directory.parent.name:
        raise ValueError("it lies under another key")
    return stored


def _entry(stored: _Stored, directory: Path) -> Entry:
    return Entry(
        stored.key, stored.stage, directory, stored.facts, stored.inputs, stored.record.model_dump(mode="python")
    )


def _size_bytes(directory: Path) -> int:
    """Bytes of all files below; another process may be taking some away."""
    size = 0
    for item in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if item.is_file():
                size += item.stat().st_size
    return size


def default_root() -> Path:
    """The store's folder when none is named: `OPTIMIZE_STORE`, else the user's cache folder."""
    named = os.environ.get("OPTIMIZE_STORE")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("model-optimize")) / "store"
