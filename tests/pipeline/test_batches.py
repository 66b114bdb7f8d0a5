"""Batches on disk keep their order, however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.pipeline import batches
from passes import array_files


def test_more_batches_than_five_digits_count_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(array_files, "write", lambda path, arrays: names.append(path.name))
    assert batches.write(tmp_path / "evaluation", ({} for _ in range(100_002))) == 100_002
    assert sorted(names) == names
