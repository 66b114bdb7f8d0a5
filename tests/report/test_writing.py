from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from optimize.report import html, writing
from tests.support import reports


def test_all_four_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    files = writing.write(reports.passing(), tmp_path / "out")
    assert [file.name for file in files] == ["report.json", "report.md", "report.html", "junit.xml"]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())


def test_two_writes_of_the_same_facts_are_the_same_bytes(tmp_path: Path) -> None:
    first = [file.read_bytes() for file in writing.write(reports.failing(), tmp_path / "a")]
    second = [file.read_bytes() for file in writing.write(reports.failing(), tmp_path / "b")]
    assert first == second


def test_a_view_that_cannot_be_made_leaves_the_old_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing.write(reports.passing(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(html, "render", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writing.write(reports.failing(), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupted_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = writing.publish(tmp_path / "report.md", "old")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writing.publish(file, "new")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "old"


def test_files_get_the_users_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        file = writing.publish(tmp_path / "report.md", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
