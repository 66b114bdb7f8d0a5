"""Finding the fewest layers to leave out so that a quantized model meets its accuracy budget.

Layers are ranked by their own error. First the least number of worst layers that must stay out is found by
bisection; then layers are put back one by one, those that cost the most first, while the budget still holds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

Score = Callable[[frozenset[str]], float]
"""Accuracy of the model with the given layers left in floating point; higher is better."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate that was scored."""

    left_out: frozenset[str]
    score: float
    met: bool


@dataclasses.dataclass
class Allowance:
    """How much searching is allowed: scored candidates, and a moment on the monotonic clock."""

    evaluations: int
    until: float

    def spend(self) -> bool:
        """Take one evaluation; False when none or no time is left."""
        if self.evaluations <= 0 or time.monotonic() >= self.until:
            return False
        self.evaluations -= 1
        return True


def search(
    layers: Sequence[str],
    error: Mapping[str, float],
    cost: Mapping[str, float],
    score: Score,
    least: float,
    allowance: Allowance,
) -> tuple[frozenset[str] | None, tuple[Trial, ...]]:
    """Choose the layers to leave out.

    Args:
        layers: All layers that could be quantized.
        error: Per layer, its own relative error.
        cost: Per layer, what leaving it out costs (any unit; larger is worse).
        score: Scores a choice.
        least: The score that must be reached.
        allowance: Spent by every call of `score`.

    Returns:
        The layers to leave out, or None when no scored choice met the budget; and every trial, in order.
    """
    ranked = sorted(layers, key=lambda name: (-error[name], name))
    trials: list[Trial] = []
    seen: dict[frozenset[str], bool] = {}

    def meets(left_out: frozenset[str]) -> bool | None:
        if left_out in seen:
            return seen[left_out]
        if not allowance.spend():
            return None
        reached = score(left_out)
        trials.append(Trial(left_out, reached, reached >= least))
        seen[left_out] = reached >= least
        return seen[left_out]

    best = _bisect(ranked, meets)
    if best is None:
        return None, tuple(trials)
    # The dearest first; of equally dear ones the least sensitive.
    for name in sorted(best, key=lambda item: (-cost[item], error[item], item)):
        answer = meets(best - {name})
        if answer is None:
            break
        if answer:
            best = best - {name}
    return best, tuple(trials)


def _bisect(ranked: Sequence[str], meets: Callable[[frozenset[str]], bool | None]) -> frozenset[str] | None:
    """The shortest prefix of the ranking that, left out, meets the budget (as far as evaluations reach)."""
    answer = meets(frozenset())
    if answer:
        return frozenset()
    low, high = 0, len(ranked)
    best: frozenset[str] | None = None
    while high - low > 1:
        middle = (low + high) // 2
        answer = meets(frozenset(ranked[:middle]))
        if answer is None:
            break
        if answer:
            best, high = frozenset(ranked[:middle]), middle
        else:
            low = middle
    return best
