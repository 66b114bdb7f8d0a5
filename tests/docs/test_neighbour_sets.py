"""docs/neighbour-sets.md says of its sets what their figures say."""

from __future__ import annotations

import re

import numpy as np

from tests.benchmarks import neighbour_sets
from tests.benchmarks.quantization_table import ROOT


def test_the_page_sums_up_its_own_rows() -> None:
    text = (ROOT / "docs" / "neighbour-sets.md").read_text(encoding="utf-8")
    found = [tuple(map(float, row)) for row in re.findall(r"^\| \d+ \| (\S+) \| (\S+) \| (\S+) \|$", text, re.M)]
    assert len(found) == neighbour_sets.SETS
    exact = [
        (round(share * neighbour_sets.SIZE) / neighbour_sets.SIZE, mean, least) for share, mean, least in found
    ]
    again = neighbour_sets.page([(share, mean, least) for share, mean, least in exact])
    assert again.splitlines()[-1] == text.splitlines()[-1]
    assert f"{np.mean([share for share, _, _ in exact]):.3f}" in text


def test_sets_below_the_goal_are_counted() -> None:
    last = neighbour_sets.page([(0.94, 1, 1), (0.96, 1, 1)]).splitlines()[-1]
    assert last.startswith("Agreement over all: 0.950, from 0.940 to 0.960")
    assert last.endswith("0.95 is reached in 1 of 2 sets.")
