"""The samples whose decision changed, as CSV: to look at them, or to join them with the data they came from."""

from __future__ import annotations

import csv
import io

from optimize.facts import AccuracyResult

HEADS = ("sample", "label", "original", "optimized", "change")


def render(result: AccuracyResult) -> str:
    """One line a changed sample, counted from 0 in the order of the evaluation data; the heads alone for none.

    `change` is "right to wrong", "wrong to right" or "wrong to wrong", and empty without a label.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADS)
    for flip in result.flips:
        change = _change(flip.label, flip.reference, flip.candidate)
        label = "" if flip.label is None else flip.label
        writer.writerow((flip.sample, label, flip.reference, flip.candidate, change))
    return text.getvalue()


def _change(label: int | None, before: int, after: int) -> str:
    if label is None or label < 0:
        return ""
    return f"{'right' if before == label else 'wrong'} to {'right' if after == label else 'wrong'}"
