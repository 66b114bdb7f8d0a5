"""Bundles as tar archives: the same bytes for the same files, and unpacked without trusting them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from optimize.bundle import manifest as manifests
from optimize.bundle.manifest import Entry, Manifest
from optimize.errors import UsageError

CHUNK = 1 << 20
SUFFIXES = (".tar", ".tar.gz", ".tgz")
GZIP_LEVEL = 1
"""Weights hardly compress; a higher level costs minutes a gigabyte and saves next to nothing."""

MAXIMUM_RATIO = 1100
"""Deflate cannot shrink more than 1032 times; a manifest that promises more is a bomb."""


HEADERS = 1 << 20
"""Bytes between two files of an archive, with what a read takes ahead; ours have a name of 400 characters there."""

_GZIP = b"\x1f\x8b"


def is_archive(path: Path) -> bool:
    """Whether a name asks for an archive."""
    return path.name.endswith(SUFFIXES)


def write(folder: Path, manifest: Manifest, destination: Path, *, name: str) -> None:
    """Write a bundle's folder as an archive: manifest first, files in their order, no times, no owners.

    Args:
        name: The folder that everything lies in inside the archive.
    """
    with destination.open("xb") as raw:
        if destination.name.endswith(".tar"):
            _fill(raw, folder, manifest, name)
        else:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as packed:
                _fill(packed, folder, manifest, name)
        raw.flush()
        os.fsync(raw.fileno())


def _fill(stream: IO[bytes] | gzip.GzipFile, folder: Path, manifest: Manifest, name: str) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        text = manifest.text().encode()
        tar.addfile(_header(f"{name}/{manifests.NAME}", len(text), False), io.BytesIO(text))
        for entry in manifest.files:
            with (folder / entry.path).open("rb") as file:
                tar.addfile(_header(f"{name}/{entry.path}", entry.size_bytes, entry.is_executable), file)


def _header(name: str, size: int, is_executable: bool) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o755 if is_executable else 0o644
    return header


def read(path: Path, take: Callable[[Entry, Iterator[bytes]], None]) -> tuple[Manifest, list[str]]:
    """Go through an archive once, trusting nothing: plain files only, the manifest first, no more than it lists.

    Args:
        take: Called with each listed file and its content in chunks; must use them up.

    Returns:
        The manifest, and what is wrong with the files, a sentence each.

    Raises:
        UsageError: When it is no archive of a bundle at all, or one made to do harm.
    """
    try:
        with path.open("rb") as raw:
            is_packed = raw.read(2) == _GZIP
            raw.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=raw) if is_packed else raw)
            with _reading_a_header(stream):
                tar = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115
            with tar:
                return _read(tar, stream, path, take)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"{path}: {error.strerror}.") from None
        raise UsageError(f"{path}: not a whole tar archive ({error}).") from None


class _Bounded(io.RawIOBase):
    """An archive's bytes, no more of them than are due.

    A header may announce any length (names, PAX records, maps of sparse files), and `tarfile` reads all of it into
    memory: a few packed megabytes would become terabytes.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self._stream = stream
        self.due = HEADERS

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes.

        Raises:
            ReadError: When that is more than is due.
        """
        data = self._stream.read(size)
        self.due -= len(data)
        if self.due < 0:
            raise tarfile.ReadError(f"its headers are larger than {HEADERS:,} bytes")
        return data


@contextlib.contextmanager
def _reading_a_header(stream: _Bounded) -> Iterator[None]:
    """Around the reading of one file's header."""
    stream.due = HEADERS
    try:
        yield
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise tarfile.ReadError(f"a damaged header: {error}") from error  # tarfile checks little of what it reads


def _read(
    tar: tarfile.TarFile, stream: _Bounded, path: Path, take: Callable[[Entry, Iterator[bytes]], None]
) -> tuple[Manifest, list[str]]:
    with _reading_a_header(stream):
        first = tar.next()
    top, _, name = (first.name if first else "").partition("/")
    if first is None or name != manifests.NAME or not first.isreg() or first.size > manifests.MAXIMUM_BYTES:
        raise UsageError(f"{path}: no bundle: an archive's first file must be NAME/{manifests.NAME}.")
    stream.due = first.size + HEADERS
    manifest = manifests.parse(_content(tar, first).read(), str(path))
    total = sum(entry.size_bytes for entry in manifest.files)
    if total > MAXIMUM_RATIO * max(path.stat().st_size, 1):
        raise UsageError(f"{path}: {total:,} bytes cannot come out of {path.stat().st_size:,}; refused.")
    expected = {entry.path: entry for entry in manifest.files}
    problems = []
    while True:
        with _reading_a_header(stream):
            member = tar.next()
        if member is None:
            break
        below, _, inner = member.name.partition("/")
        if not member.isreg() or below != top or not manifests.is_safe(inner):
            raise UsageError(f"{path}: '{member.name}' is a link, a device or outside the bundle; refused.")
        entry = expected.pop(inner, None)
        if entry is None:
            raise UsageError(f"{path}: '{inner}' is not in the manifest, or twice in the archive; refused.")
        if member.size != entry.size_bytes:
            raise UsageError(
                f"{path}: '{inner}' has {member.size:,} bytes, the manifest says {entry.size_bytes:,}; refused."
            )
        digest = hashlib.sha256()
        stream.due = member.size + HEADERS
        take(entry, _chunks(_content(tar, member), digest.update))
        if digest.hexdigest() != entry.sha256:
            problems.append(f"{inner}: changed (sha256 {digest.hexdigest()[:12]}…, expected {entry.sha256[:12]}…)")
    problems.extend(f"{inner}: missing" for inner in expected)
    return manifest, problems


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # a regular file always has content
    return content


def _chunks(content: IO[bytes], seen: Callable[[bytes], object]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK):
        seen(chunk)
        yield chunk


def unpack(path: Path, destination: Path) -> Manifest:
    """Unpack a bundle's archive into a new folder, whole and verified or not at all.

    Raises:
        UsageError: When the folder exists, the archive is no sound bundle, or the disk has no room for it.
    """
    if destination.exists():
        raise UsageError(f"{destination} exists; name a new folder.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def store(entry: Entry, chunks: Iterator[bytes]) -> None:
        if shutil.disk_usage(partial).free < entry.size_bytes + CHUNK:
            raise UsageError(f"{destination}: the disk has no room for {entry.path} ({entry.size_bytes:,} bytes).")
        file = partial / entry.path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as out:
            for chunk in chunks:
                out.write(chunk)
        file.chmod(0o755 if entry.is_executable else 0o644)

    try:
        manifest, problems = read(path, store)
        if problems:
            raise UsageError(f"{path}: damaged: {'; '.join(problems[:10])}.")
        (partial / manifests.NAME).write_text(manifest.text(), encoding="utf-8")
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest
