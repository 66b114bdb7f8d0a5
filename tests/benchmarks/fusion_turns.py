"""Contenders in one process take turns; what a turn must hold for the next one to be fair.

A thread pool spins for a while after its last call: ONNX Runtime's for up to 1 ms, libgomp's (torch) for some 5 to
10 ms, measured as the process's CPU time while it sleeps. On two cores that is half the machine for the next
contender. And the caches hold the last contender's weights. So a turn sleeps first, then makes a call that does not
count.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

Run = Callable[[], object]
Clock = Callable[[], float]
"""Seconds: of the wall, or of the process's CPU time."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one contender does when it is its turn.

    Attributes:
        pause_s: Sleep at the start, until the pools of the others sleep too.
        discarded: Calls that are not measured.
        timed: Calls that are; their median is the turn's sample.
    """

    pause_s: float = 0.03
    discarded: int = 1
    timed: int = 3


ARRANGEMENTS = {
    "one call a turn": Turn(0.0, 0, 1),
    "after a pause": Turn(0.03, 0, 1),
    "after a discarded call": Turn(0.0, 1, 1),
    "after both": Turn(0.03, 1, 1),
    "three calls after both (this page)": Turn(),
}


def measure(
    runs: Mapping[str, Run], rounds: int, turn: Turn, now: Clock = time.perf_counter
) -> dict[str, np.ndarray]:
    """Milliseconds of `now` per contender and round; the order turns by one every round."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            samples[name].append(_take(runs[name], turn, now))
        order = order[1:] + order[:1]
    return {name: np.array(values) for name, values in samples.items()}


def alone(run: Run, rounds: int) -> np.ndarray:
    """Milliseconds of calls that follow each other, nobody else's between them."""
    time.sleep(0.1)
    return np.array([_take(run, Turn(0.0, 0, 1), time.perf_counter) for _ in range(rounds)])


def _take(run: Run, turn: Turn, now: Clock) -> float:
    if turn.pause_s:
        time.sleep(turn.pause_s)
    for _ in range(turn.discarded):
        run()
    taken = []
    for _ in range(turn.timed):
        started = now()
        run()
        taken.append((now() - started) * 1000)
    return float(np.median(taken))


def section(name: str, runs: Mapping[str, Run], watched: tuple[str, ...], rounds: int) -> list[str]:
    """The page's section that shows what each part of a turn is for."""
    shown = [contender for contender in watched if contender in runs]
    lines = [
        "## Why a turn is made so",
        "",
        f"The same contenders on {name}, {rounds} rounds each; milliseconds, median (fastest). The last row is",
        "each contender's calls in a row, nobody else's between them: what a turn should show.",
        "",
        f"| a turn | {' | '.join(shown)} |",
        f"|---|{'---|' * len(shown)}",
    ]
    for title, turn in ARRANGEMENTS.items():
        samples = measure(runs, rounds, turn)
        lines.append(f"| {title} | {' | '.join(cell(samples[contender]) for contender in shown)} |")
    single = [cell(alone(runs[contender], 3 * rounds)) for contender in shown]
    return [*lines, f"| alone | {' | '.join(single)} |", ""]


def cell(samples: np.ndarray) -> str:
    """Median and fastest, as the page shows them."""
    return f"{np.median(samples):.1f} ({samples.min():.1f})"
