"""Archives made to do harm are refused, and nothing of them reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from optimize.bundle import archive, manifest, verifying
from optimize.bundle.manifest import Entry
from optimize.errors import UsageError
from tests.support import reports

CONTENT = b"content"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
Spoil = Callable[[tarfile.TarFile], None]


def text(*paths: str, size: int = len(CONTENT)) -> bytes:
    entries = tuple(
        Entry.model_construct(path=path, role="model", sha256=DIGEST, size_bytes=size) for path in paths
    )
    described = manifest.describe(reports.passing(), ())
    return described.model_copy(update={"files": entries}).text().encode()


def add(tar: tarfile.TarFile, name: str, content: bytes = CONTENT, **fields: object) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in fields.items():
        setattr(header, key, value)
    tar.addfile(header, io.BytesIO(content))


def make(path: Path, *members: tuple[str, bytes, dict[str, object]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content, fields in members:
            add(tar, name, content, **fields)
    return path


def attempt(path: Path, tmp_path: Path) -> str:
    with pytest.raises(UsageError) as verified:
        verifying.verify(path)
    with pytest.raises(UsageError) as unpacked:
        archive.unpack(path, tmp_path / "inside" / "out")
    assert str(verified.value) == str(unpacked.value)
    assert sorted(item.name for item in tmp_path.rglob("*")) == sorted({path.name, "inside"}), "nothing was left"
    return str(verified.value)


@pytest.mark.parametrize(
    "evil", ["../evil", "/evil", "a/../../evil", "..", "a\\b", "C:evil", "a//b", "./a", "e\x1bvil"]
)
def test_a_manifest_whose_paths_leave_the_folder_is_refused(tmp_path: Path, evil: str) -> None:
    path = make(tmp_path / "b.tar", ("b/manifest.json", text(evil), {}), (f"b/{evil}", CONTENT, {}))
    assert "leaves the bundle's folder or is no plain relative path" in attempt(path, tmp_path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("b/../../evil", {}),
        ("/etc/evil", {}),
        ("c/a", {}),
        ("b/a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}),
        ("b/a", {"type": tarfile.LNKTYPE, "linkname": "b/manifest.json", "size": 0}),
        ("b/a", {"type": tarfile.CHRTYPE, "size": 0}),
        ("b/a", {"type": tarfile.FIFOTYPE, "size": 0}),
        ("b/a", {"type": tarfile.DIRTYPE, "size": 0}),
    ],
)
def test_members_that_are_no_plain_files_inside_are_refused(
    tmp_path: Path, name: str, fields: dict[str, object]
) -> None:
    content = b"" if "size" in fields else CONTENT
    path = make(tmp_path / "b.tar", ("b/manifest.json", text("a"), {}), (name, content, fields))
    assert "is a link, a device or outside the bundle; refused" in attempt(path, tmp_path)


def test_a_file_the_manifest_does_not_list_or_lists_once_but_comes_twice_is_refused(tmp_path: Path) -> None:
    head = ("b/manifest.json", text("a"), {})
    path = make(tmp_path / "b.tar", head, ("b/a", CONTENT, {}), ("b/a", CONTENT, {}))
    assert "'a' is not in the manifest, or twice" in attempt(path, tmp_path)
    path = make(tmp_path / "b.tar", head, ("b/other", CONTENT, {}))
    assert "'other' is not in the manifest" in attempt(path, tmp_path)


def test_a_file_larger_than_the_manifest_says_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "b.tar", ("b/manifest.json", text("a"), {}), ("b/a", CONTENT * 9, {}))
    assert "'a' has 63 bytes, the manifest says 7; refused" in attempt(path, tmp_path)


def test_a_bomb_is_refused_by_what_its_manifest_promises(tmp_path: Path) -> None:
    path = make(tmp_path / "b.tar", ("b/manifest.json", text("a", size=10**13), {}))
    assert "cannot come out of" in attempt(path, tmp_path)


def test_a_compressed_manifest_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("b/manifest.json")
    header.size = manifest.MAXIMUM_BYTES + 1
    path = tmp_path / "b.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(1 << 20)))
    assert "an archive's first file must be NAME/manifest.json" in attempt(path, tmp_path)


def test_two_paths_that_are_one_file_on_some_systems_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "b.tar", ("b/manifest.json", text("a", "A"), {}))
    assert "listed twice" in attempt(path, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not a tar", b"\x1f\x8b\x08", gzip.compress(b"x", mtime=0)[:-4], b"\x1f\x8b" + bytes(40)]
)
def test_what_is_no_archive_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.tar.gz"
    path.write_bytes(content)
    assert "\n" not in attempt(path, tmp_path)


def test_an_archive_cut_short_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "b.tar", ("b/manifest.json", text("a"), {}), ("b/a", CONTENT, {}))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(CONTENT) + 3])
    with pytest.raises(UsageError):
        archive.unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "b.tar", ("b/manifest.json", text("a", "c"), {}), ("b/a", CONTENT, {}))
    assert verifying.verify(path).problems == ("c: missing",)
    with pytest.raises(UsageError, match="No such file"):
        verifying.verify(tmp_path / "none.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="No such file"):
        verifying.verify(tmp_path / "empty")


def headed(kind: bytes, size: int, *, extended: bool = False) -> bytes:
    """A header of a kind and size; for a sparse file, with more of its map to follow."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    block = bytearray(header.tobuf(tarfile.USTAR_FORMAT))
    block[482] = int(extended)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


SPARSE_MAP = (b"00000000001\0" * 2) * 21 + b"\1" + bytes(7)


@pytest.mark.parametrize(
    ("start", "fill"),
    [
        (headed(tarfile.XHDTYPE, 1 << 30), bytes(1 << 20)),
        (headed(tarfile.GNUTYPE_LONGNAME, 1 << 30), bytes(1 << 20)),
        (headed(tarfile.GNUTYPE_SPARSE, 0, extended=True), SPARSE_MAP * 2048),
    ],
    ids=["records", "name", "sparse"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_header_that_unpacks_to_gigabytes_is_not_read(
    tmp_path: Path, start: bytes, fill: bytes, is_first: bool
) -> None:
    listed = io.BytesIO()
    with tarfile.open(fileobj=listed, mode="w") as tar:
        add(tar, "b/manifest.json", text("model.onnx"))
    before = b"" if is_first else listed.getvalue()[: -tarfile.RECORDSIZE].rstrip(b"\0")
    before += bytes(-len(before) % 512)
    with gzip.open(tmp_path / "bomb.tgz", "wb", compresslevel=1) as packed:
        packed.write(before + start)
        for _ in range(64):
            packed.write(fill)
    tracemalloc.start()
    with pytest.raises(UsageError, match="its headers are larger than 1,048,576 bytes"):
        verifying.verify(tmp_path / "bomb.tgz")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_damaged_map_of_a_sparse_file_is_a_damaged_archive(tmp_path: Path) -> None:
    records = b"".join(
        b"%d %s=%s\n" % (len(key) + len(value) + 5, key, value)
        for key, value in ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    )
    content = headed(tarfile.XHDTYPE, len(records)) + records.ljust(512, b"\0")
    (tmp_path / "b.tar").write_bytes(content + headed(tarfile.REGTYPE, 1 << 20) + b"1" * (1 << 19))
    with pytest.raises(UsageError, match="not a whole tar archive"):
        verifying.verify(tmp_path / "b.tar")
