"""How sure a ratio of two medians is, given runs that drift together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

ENOUGH_ROUNDS = 5
"""With fewer rounds, single runs are resampled instead of rounds."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its interval; `is_significant` when 1 lies outside."""

    ratio: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1.0 <= self.high


def ratio_of_medians(
    over: Sequence[Sequence[float]],
    of: Sequence[Sequence[float]],
    rng: np.random.Generator,
    *,
    together: bool = True,
) -> Ratio:
    """median(over) / median(of) with its percentile bootstrap interval (Efron and Tibshirani, 1993, ch. 13).

    Runs of one round share the machine's state, so whole rounds are resampled, the same ones on both sides:
    what slows both down for a while cancels out.

    Args:
        over: Per round, the runs of one side; all rounds have the same number of runs.
        of: The same of the other side.
        rng: Draws the resamples.
        together: Whether both sides took turns, round by round; else each side's rounds are resampled alone.
    """
    left, right = np.asarray(over, np.float64), np.asarray(of, np.float64)
    if min(len(left), len(right)) >= ENOUGH_ROUNDS:
        drawn = rng.integers(0, len(left), (RESAMPLES, len(left)))
        other = drawn if together else rng.integers(0, len(right), (RESAMPLES, len(right)))
        medians = (_medians(left[drawn]), _medians(right[other]))
    else:
        medians = (_resampled(left.reshape(-1), rng), _resampled(right.reshape(-1), rng))
    ratios = medians[0] / medians[1]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(float(np.median(left) / np.median(right)), float(low), float(high))


def _resampled(runs: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return _medians(runs[rng.integers(0, runs.size, (RESAMPLES, runs.size))])


def _medians(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(drawn.reshape(RESAMPLES, -1), axis=1)
    return medians
