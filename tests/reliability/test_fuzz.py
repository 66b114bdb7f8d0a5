"""A seeded share of the fuzzing that `python -m tests.reliability.fuzz` does at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.errors import UsageError
from tests.reliability import fuzz, fuzz_readers


@pytest.mark.parametrize("name", sorted(fuzz.READERS))
def test_broken_files_are_taken_or_refused_in_words(name: str, tmp_path: Path) -> None:
    failures = fuzz.fuzz(name, cases=200, seed=7, folder=tmp_path)
    assert failures == [], [(item["case"], item["problem"]) for item in failures[:5]]


def test_an_array_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.npz"
    file.write_bytes(fuzz_readers.zip_bomb())
    with pytest.raises(UsageError):
        fuzz_readers.data_files().read(file)
