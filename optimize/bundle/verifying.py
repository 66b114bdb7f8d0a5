"""Whether a bundle is what its manifest says, file by file, before anything in it is used."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from optimize import foreign_files
from optimize.bundle import archive
from optimize.bundle import manifest as manifests
from optimize.bundle.manifest import Entry, Manifest
from optimize.errors import UsageError
from optimize.onnx_files import sha256_of


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        sha256: Of the manifest; who publishes a bundle publishes this beside it.
        problems: What is wrong, a sentence each; empty when the bundle is sound.
    """

    manifest: Manifest
    sha256: str
    problems: tuple[str, ...]


def verify(path: Path, *, sha256: str | None = None) -> Verification:
    """Check a bundle, a folder or an archive (which is read, not unpacked).

    Args:
        sha256: The manifest's digest as its publisher gave it. A manifest vouches for the files; this vouches
            for the manifest.

    Raises:
        UsageError: When it is no bundle, or one made to do harm.
    """
    if path.is_dir():
        manifest, problems = _folder(path)
    else:
        manifest, problems = archive.read(path, _pass_over)
    digest = hashlib.sha256(manifest.text().encode()).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        problems = [f"{manifests.NAME}: sha256 is {digest}, expected {sha256.lower()}", *problems]
    return Verification(manifest, digest, tuple(problems))


def _pass_over(entry: Entry, chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


def _folder(folder: Path) -> tuple[Manifest, list[str]]:
    file = folder / manifests.NAME
    try:
        manifest = manifests.parse(foreign_files.content(file, manifests.MAXIMUM_BYTES), str(folder))
    except OSError as error:
        raise UsageError(
            f"{file}: {error.strerror}.", hint="Give a folder or archive that `optimize bundle` wrote."
        ) from None
    problems = []
    for entry in manifest.files:
        path = folder / entry.path
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{entry.path}: is a link, or reached through one")
        elif not path.is_file():
            problems.append(f"{entry.path}: missing")
        elif path.stat().st_size != entry.size_bytes:
            size = path.stat().st_size
            problems.append(f"{entry.path}: changed ({size:,} bytes, expected {entry.size_bytes:,})")
        elif (digest := sha256_of(path)) != entry.sha256:
            problems.append(f"{entry.path}: changed (sha256 {digest[:12]}…, expected {entry.sha256[:12]}…)")
    listed = {entry.path for entry in manifest.files} | {manifests.NAME}
    for path in sorted(folder.rglob("*")):
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in listed:
            problems.append(f"{path.relative_to(folder).as_posix()}: not in the manifest")
    return manifest, problems
