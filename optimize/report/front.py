"""The Pareto front: which ways to run a model no other one beats in accuracy, latency and size together."""

from __future__ import annotations

import math
from collections.abc import Iterable

from optimize.report import headline
from optimize.report.model import Report
from optimize.sweep_facts import Point


def with_front(points: Iterable[Point]) -> tuple[Point, ...]:
    """Mark the points that no other one dominates.

    A run that could not finish, or has no accuracy, is never on the front; neither is one that misses a gate,
    unless all do.
    """
    found = tuple(points)
    finished = [item for item in found if item.verdict != "ERROR" and item.cosine is not None]
    able = [item for item in finished if item.verdict != "FAIL"] or finished
    return tuple(
        item.model_copy(update={"is_on_front": item in able and not any(_dominates(other, item) for other in able)})
        for item in found
    )


def points_of(report: Report) -> tuple[Point, ...]:
    """The contenders of a run, or the runs of the sweep it belongs to beside its exported model.

    Nothing when it was not both compared and timed.
    """
    own = [item for item in map(_contender, (report,) * 3, ("original", "exported", "optimized")) if item]
    if report.sweep is not None:
        others = [item for item in own if item.label == "exported"]
        return with_front((*report.sweep.points, *others))
    return with_front(own) if any(item.label == "optimized" for item in own) else ()


def _contender(report: Report, name: str) -> Point | None:
    timed = headline.contender(report, name)
    cosine = _cosine(report, name)
    if timed is None or cosine is None or not math.isfinite(cosine):
        return None
    facts = {"exported": report.exported, "optimized": report.optimized}.get(name)
    return Point(label=name, cosine=cosine, latency_ms=timed.p50_ms, size_bytes=facts.size_bytes if facts else None)


def _cosine(report: Report, name: str) -> float | None:
    if name == "original":
        return 1.0
    stages = {result.stage: result for result in report.accuracy}
    result = stages.get("export") if name == "exported" else headline.final_accuracy(report)
    return None if result is None else headline.worst(result, "cosine", low_is_bad=True)


def _dominates(one: Point, other: Point) -> bool:
    """Whether `one` is at least as good everywhere and better somewhere; a missing figure counts as worst."""
    worst = float("inf")
    pairs = [
        (-(one.cosine or 0.0), -(other.cosine or 0.0)),
        (one.latency_ms or worst, other.latency_ms or worst),
        (one.size_bytes or worst, other.size_bytes or worst),
    ]
    return all(left <= right for left, right in pairs) and any(left < right for left, right in pairs)
