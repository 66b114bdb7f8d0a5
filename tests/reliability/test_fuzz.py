"""A seeded share of the fuzzing that `python -m tests.reliability.fuzz` does at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import fuzz


@pytest.mark.parametrize("name", sorted(fuzz.READERS))
def test_broken_files_are_taken_or_refused_in_words(name: str, tmp_path: Path) -> None:
    failures = fuzz.fuzz(name, cases=200, seed=7, folder=tmp_path)
    assert failures == [], [(item["case"], item["problem"]) for item in failures[:5]]
