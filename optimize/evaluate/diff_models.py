"""Two models compared on the same inputs, and timed in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from optimize.differences import Difference, FigureChange
from optimize.engines.base import Feeds, Progress, Session
from optimize.errors import UsageError
from optimize.evaluate import changes, gates, throughput
from optimize.evaluate.accuracy import Comparison, Kind
from optimize.evaluate.intervals import Ratio
from optimize.facts import LayerFact, ModelFacts, ThroughputResult


@dataclasses.dataclass(frozen=True)
class Side:
    """One of two models.

    Attributes:
        label: What to call it.
        session: Opened, to run and time.
        facts: What its graph is made of, where known.
        layers: Its layers' number formats, where known.
    """

    label: str
    session: Session
    facts: ModelFacts | None = None
    layers: tuple[LayerFact, ...] = ()


def compare_models(
    before: Side,
    after: Side,
    batches: Iterable[tuple[Feeds, np.ndarray[Any, Any] | None]],
    *,
    kind: Kind = "auto",
    runs: int = 60,
    seconds: float = 30.0,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Difference:
    """Run both on the same batches and time them in turns on the first.

    Args:
        before: The one that counts as the truth.
        after: The one that is judged.
        batches: Inputs, and labels or None, one batch in memory at a time.
        kind: What the outputs are.
        runs: Timed runs of each; 0 leaves the timing out.
        seconds: Time limit of the timing.
        threads: Threads each was allowed, to be recorded.
        seed: Seed of the order and of the resampling.
        progress: Told what is going on.

    Raises:
        UsageError: When they take different inputs.
        StageFailed: When there is no batch, or one of them fails to run.
    """
    names = [sorted(spec.name for spec in side.session.inputs) for side in (before, after)]
    if names[0] != names[1]:
        raise UsageError(
            "the two models take different inputs: "
            f"{', '.join(names[0])} ({before.label}); {', '.join(names[1])} ({after.label})."
        )
    tell = progress or (lambda what, done, total: None)
    comparison = Comparison(kind)
    first: Feeds | None = None
    for done, (feeds, labels) in enumerate(batches):
        tell("comparing outputs", done, 0)
        first = feeds if first is None else first
        comparison.add(before.session.run(feeds), after.session.run(feeds), labels)
    result = comparison.result(after.label)
    figures: list[FigureChange] = []
    found = gates.figures_of([result], None, None, None)
    for name in changes.in_order(name for name in found if not name.startswith("drop")):
        metric = name.removeprefix("metric.") if name.startswith("metric.") else ""
        figures.append(changes.figure(name, result.reference_metrics.get(metric) if metric else None, found[name]))
    notes = list(result.notes)
    if runs and first is not None:
        sessions = {"before": before.session, "after": after.session}
        timing = throughput.measure(
            sessions, first, runs=runs, seconds=seconds, threads=threads, seed=seed, progress=progress
        )
        figures += _timing_figures(timing)
        notes += timing.notes
    sizes = [None if side.facts is None else float(side.facts.size_bytes) for side in (before, after)]
    if any(size is not None for size in sizes):
        figures.append(changes.figure("size", sizes[0], sizes[1]))
    decided = any(item.top1_agreement is not None for item in result.outputs)
    samples = max((item.samples for item in result.outputs), default=0)
    return Difference(
        kind="models",
        before=before.label,
        after=after.label,
        figures=tuple(figures),
        outputs=result.outputs,
        flips=(result.flips_total, samples) if decided else None,
        ops=changes.counts(before.facts, after.facts, "ops"),
        weights=changes.counts(before.facts, after.facts, "weight_bytes"),
        layers=changes.layers(before.layers, after.layers),
        notes=tuple(notes),
    )


def _timing_figures(timing: ThroughputResult) -> list[FigureChange]:
    before, after = timing.contenders
    (speedup,) = timing.speedups
    # `speedup` is before over after; a figure's ratio is after over before
    ratio = Ratio(1 / speedup.ratio, 1 / speedup.high, 1 / speedup.low)
    return [
        changes.figure("latency.p50", before.p50_ms, after.p50_ms, ratio),
        *(
            changes.figure(name, left, right)
            for name, left, right in (
                ("latency.p90", before.p90_ms, after.p90_ms),
                ("latency.p99", before.p99_ms, after.p99_ms),
            )
            if left is not None and right is not None
        ),
        changes.figure(
            "throughput",
            before.throughput_per_s,
            after.throughput_per_s,
            Ratio(speedup.ratio, speedup.low, speedup.high),
        ),
    ]
