"""Changed decisions as a list."""

from __future__ import annotations

import csv
import io

from optimize.facts import Flip
from optimize.report import flips
from tests.support import reports


def test_every_kept_change_is_a_line_with_its_direction() -> None:
    changed = (
        Flip(sample=3, reference=7, candidate=9, label=7),
        Flip(sample=4, reference=7, candidate=9, label=9),
        Flip(sample=8, reference=7, candidate=9, label=1),
        Flip(sample=9, reference=7, candidate=-1),
        Flip(sample=12, reference=7, candidate=9, label=-100),
    )
    rows = list(csv.DictReader(io.StringIO(flips.render(reports.accuracy("engine", 0.1, flips=changed)))))
    assert [row["change"] for row in rows] == ["right to wrong", "wrong to right", "wrong to wrong", "", ""]
    assert [row["sample"] for row in rows] == ["3", "4", "8", "9", "12"]
    assert rows[0] == {"sample": "3", "label": "7", "original": "7", "optimized": "9", "change": "right to wrong"}
    assert rows[3]["label"] == ""


def test_without_changes_there_are_heads_alone() -> None:
    assert flips.render(reports.accuracy("engine", 0.1)) == "sample,label,original,optimized,change\n"
