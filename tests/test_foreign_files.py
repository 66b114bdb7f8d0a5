"""Small files of others: plain, bounded, not deep, whoever made them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optimize import foreign_files


def test_a_plain_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert foreign_files.content(file, 5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        foreign_files.content(file, 4)


def test_a_link_to_a_device_a_pipe_and_a_folder_are_no_plain_files(tmp_path: Path) -> None:
    (tmp_path / "endless").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("endless", "pipe"):
        with pytest.raises(OSError, match="it is no plain file"):
            foreign_files.content(tmp_path / name, 100)
    with pytest.raises(IsADirectoryError):
        foreign_files.content(tmp_path, 100)
    with pytest.raises(FileNotFoundError):
        foreign_files.content(tmp_path / "none", 100)


def test_no_handle_stays_open_whatever_happens(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for path in (tmp_path, Path("/dev/zero"), Path(__file__)):
            with pytest.raises(OSError):
                foreign_files.content(path, 1)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("levels", [foreign_files.DEEPEST, 1])
def test_json_is_read_down_to_its_limit(levels: int) -> None:
    assert foreign_files.json_data("[" * levels + "]" * levels) is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * (foreign_files.DEEPEST + 1) + "]" * (foreign_files.DEEPEST + 1), "levels deep"),
        ('{"a":' * 500 + "1" + "}" * 500, "levels deep"),
        ("[" * 100_000, "levels deep"),
        ("{", "Expecting"),
        ("1" * 5000, "more than 64 bits"),
        ("-36893488147419103232", "more than 64 bits"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_that_python_would_stumble_over_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        foreign_files.json_data(text)
