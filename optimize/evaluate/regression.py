"""One measurement of speed against an earlier one: comparable at all, and different beyond noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimize.evaluate import throughput
from optimize.evaluate.intervals import Ratio, ratio_of_medians
from optimize.facts import ThroughputResult


def timed_alike(before: ThroughputResult | None, after: ThroughputResult | None) -> bool:
    """Whether both were timed, at the same shapes and threads."""
    return (
        before is not None
        and after is not None
        and (before.shapes, before.threads) == (after.shapes, after.threads)
    )


def latency_ratio(before: ThroughputResult | None, after: ThroughputResult | None) -> Ratio | None:
    """Median of after over median of before, from the raw runs of two separate measurements."""
    sides = [
        next((item.samples_ms for item in side.contenders if item.contender == "optimized"), ())
        for side in (before, after)
        if side is not None
    ]
    if len(sides) != 2 or not all(sides):
        return None
    left, right = (_blocks(samples) for samples in sides)
    return ratio_of_medians(right, left, np.random.default_rng(0), together=False)


def _blocks(samples: Sequence[float]) -> list[list[float]]:
    """Runs in blocks of a turn: neighbours share the machine's state. A last, shorter block is left out."""
    size = throughput.TURN_RUNS if len(samples) >= throughput.TURN_RUNS else len(samples)
    whole = len(samples) - len(samples) % size
    return [list(samples[start : start + size]) for start in range(0, whole, size)]
