"""Two reports, or two models on the same inputs: what changed, and whether it is more than noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optimize.differences import CountChange, Difference, Direction, FigureChange, TextChange
from optimize.engines.base import Feeds, Progress, Session
from optimize.evaluate import earlier, gates, throughput
from optimize.evaluate.accuracy import Comparison, Kind
from optimize.evaluate.intervals import Ratio, ratio_of_medians
from optimize.facts import LayerFact, ModelFacts, ThroughputResult
from optimize.figures import split_gate

NOISE = 0.05
"""Figures of time and memory without an interval count as the same within this share."""

_NOISY = ("latency.p90", "latency.p99", "memory")
_LOWER_IS_BETTER = (
    "accuracy.relative_l2",
    "accuracy.max_abs",
    "accuracy.mean_abs",
    "latency",
    "size",
    "memory",
    "drop",
)
_ORDER = ("accuracy", "metric", "drop", "latency", "throughput", "speedup", "speedup_over_export", "size", "memory")


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


def compare_reports(
    before: Mapping[str, Any], after: Mapping[str, Any], labels: tuple[str, str] = ("before", "after")
) -> Difference:
    """Compare two reports as `earlier.load` gives them.

    Raises:
        UsageError: When one is no report of this version.
    """
    left, right = earlier.parts(before), earlier.parts(after)
    figures = [
        gates.figures_of(side.accuracy, side.throughput, side.exported, side.optimized) for side in (left, right)
    ]
    notes = list(_cautions(left, right))
    timed = _timed_alike(left.throughput, right.throughput)
    ratio = _latency_ratio(left.throughput, right.throughput) if timed else None
    changes = [
        _figure(name, figures[0].get(name), figures[1].get(name), ratio if _is_latency(name) else None)
        for name in _sorted({*figures[0], *figures[1]})
    ]
    changes = [
        item
        if _comparable(item.name, timed, _same_data(left, right))
        else item.model_copy(update={"direction": None})
        for item in changes
    ]
    changes = [_overlapping(item, left.throughput, right.throughput) for item in changes]
    return Difference(
        kind="reports",
        before=labels[0],
        after=labels[1],
        figures=tuple(changes),
        ops=_counts(left.optimized, right.optimized, "ops"),
        weights=_counts(left.optimized, right.optimized, "weight_bytes"),
        layers=_layers(left.layers, right.layers),
        gates=_texts(
            {gate.gate: "held" if gate.passed else "missed" for gate in left.gates},
            {gate.gate: "held" if gate.passed else "missed" for gate in right.gates},
        ),
        environment=_environment(left, right),
        notes=tuple(notes),
    )


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
        StageFailed: When there is no batch, or one of them fails to run.
    """
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
    for name in _sorted(name for name in found if not name.startswith("drop")):
        metric = name.removeprefix("metric.") if name.startswith("metric.") else ""
        figures.append(_figure(name, result.reference_metrics.get(metric) if metric else None, found[name]))
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
        figures.append(_figure("size", sizes[0], sizes[1]))
    decided = any(item.top1_agreement is not None for item in result.outputs)
    samples = max((item.samples for item in result.outputs), default=0)
    return Difference(
        kind="models",
        before=before.label,
        after=after.label,
        figures=tuple(figures),
        outputs=result.outputs,
        flips=(result.flips_total, samples) if decided else None,
        ops=_counts(before.facts, after.facts, "ops"),
        weights=_counts(before.facts, after.facts, "weight_bytes"),
        layers=_layers(before.layers, after.layers),
        notes=tuple(notes),
    )


def regressions(difference: Difference) -> dict[str, float]:
    """The figures that gates may limit: `regression.*`, and the second side's own.

    A latency whose change is not significant counts as 0 % above.
    """
    figures = {item.name: item.after for item in difference.figures if item.after is not None}
    changes = {item.name: item for item in difference.figures}
    latency, size, cosine = (changes.get(name) for name in ("latency.p50", "size", "accuracy.cosine"))
    if latency is not None and latency.direction is not None and latency.before and latency.after is not None:
        is_real = latency.direction in ("better", "worse")
        figures["regression.latency"] = 100 * (latency.after / latency.before - 1) if is_real else 0.0
    if size is not None and size.before and size.after is not None:
        figures["regression.size"] = 100 * (size.after / size.before - 1)
    if cosine is not None and cosine.after is not None:
        # between two models the first one's outputs are the truth, whose cosine with itself is 1
        whole = 1.0 if difference.kind == "models" else cosine.before
        if whole is not None:
            figures["regression.cosine"] = whole - cosine.after
    return figures


def _figure(name: str, before: float | None, after: float | None, ratio: Ratio | None = None) -> FigureChange:
    head = name.partition(".")[0]
    _, _, figure = split_gate(f"{name}.max")
    change = FigureChange(name=name, unit=figure.unit, before=before, after=after)
    if before is None or after is None:
        return change
    lower = any(name == item or name.startswith(f"{item}.") for item in _LOWER_IS_BETTER) or head == "latency"
    direction: Direction
    if ratio is not None and not ratio.is_significant:
        direction = "no significant difference"
    elif _equal(before, after, NOISE if name in _NOISY else 1e-9):
        direction = "same"
    elif math.isnan(before) or math.isnan(after):
        direction = "worse" if math.isnan(after) else "better"
    else:
        direction = "better" if (after < before) == lower else "worse"
    update: dict[str, Any] = {"direction": direction}
    if ratio is not None:
        update |= {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high}
    return change.model_copy(update=update)


def _equal(before: float, after: float, share: float) -> bool:
    if before == after or (math.isnan(before) and math.isnan(after)):
        return True
    return math.isfinite(before) and math.isfinite(after) and abs(after - before) <= share * abs(before)


def _comparable(name: str, timed_alike: bool, same_data: bool) -> bool:
    head = name.partition(".")[0]
    if head in ("latency", "throughput"):
        return timed_alike
    return same_data or head not in ("accuracy", "metric", "drop")


def _same_data(before: earlier.Earlier, after: earlier.Earlier) -> bool:
    digests = [(side.data.get("evaluation") or {}).get("sha256") for side in (before, after)]
    return bool(digests[0] == digests[1])


def _is_latency(name: str) -> bool:
    return name in ("latency.p50", "throughput")


def _sorted(names: Iterable[str]) -> list[str]:
    def place(name: str) -> tuple[int, str]:
        head = name.partition(".")[0]
        return (_ORDER.index(head) if head in _ORDER else len(_ORDER)), name

    return sorted(names, key=place)


def _timed_alike(before: ThroughputResult | None, after: ThroughputResult | None) -> bool:
    return (
        before is not None
        and after is not None
        and (before.shapes, before.threads) == (after.shapes, after.threads)
    )


def _latency_ratio(before: ThroughputResult | None, after: ThroughputResult | None) -> Ratio | None:
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


def _overlapping(
    change: FigureChange, before: ThroughputResult | None, after: ThroughputResult | None
) -> FigureChange:
    """A speedup whose intervals overlap did not change significantly."""
    over = {"speedup": "original", "speedup_over_export": "exported"}.get(change.name)
    if over is None or before is None or after is None or change.direction is None:
        return change
    found = [
        item for side in (before, after) for item in side.speedups if (item.of, item.over) == ("optimized", over)
    ]
    if len(found) == 2 and found[0].low <= found[1].high and found[1].low <= found[0].high:
        return change.model_copy(update={"direction": "no significant difference"})
    return change


def _timing_figures(timing: ThroughputResult) -> list[FigureChange]:
    before, after = timing.contenders
    (speedup,) = timing.speedups
    # `speedup` is before over after; a figure's ratio is after over before
    ratio = Ratio(1 / speedup.ratio, 1 / speedup.high, 1 / speedup.low)
    return [
        _figure("latency.p50", before.p50_ms, after.p50_ms, ratio),
        *(
            _figure(name, left, right)
            for name, left, right in (
                ("latency.p90", before.p90_ms, after.p90_ms),
                ("latency.p99", before.p99_ms, after.p99_ms),
            )
            if left is not None and right is not None
        ),
        _figure(
            "throughput",
            before.throughput_per_s,
            after.throughput_per_s,
            Ratio(speedup.ratio, speedup.low, speedup.high),
        ),
    ]


def _counts(before: ModelFacts | None, after: ModelFacts | None, field: str) -> tuple[CountChange, ...]:
    if before is None or after is None:
        return ()
    left, right = dict(getattr(before, field)), dict(getattr(after, field))
    names = sorted({*left, *right}, key=lambda name: (-abs(right.get(name, 0) - left.get(name, 0)), name))
    return tuple(
        CountChange(what=name, before=left.get(name, 0), after=right.get(name, 0))
        for name in names
        if left.get(name, 0) != right.get(name, 0)
    )


def _layers(before: Sequence[LayerFact], after: Sequence[LayerFact]) -> tuple[TextChange, ...]:
    return _texts(_formats_by_name(before), _formats_by_name(after))


def _formats_by_name(layers: Sequence[LayerFact]) -> dict[str, str]:
    """A module may hold several computing nodes; its distinct formats are joined."""
    found: dict[str, dict[str, None]] = {}
    for layer in layers:
        found.setdefault(layer.name, {})[_formats(layer)] = None
    return {name: "; ".join(filter(None, formats)) for name, formats in found.items()}


def _formats(layer: LayerFact) -> str:
    parts = [(layer.weight, "weight"), (layer.activation, "activation")]
    return ", ".join(f"{form} {of}" for form, of in parts if form)


def _texts(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[TextChange, ...]:
    return tuple(
        TextChange(what=name, before=before.get(name, ""), after=after.get(name, ""))
        for name in dict.fromkeys((*before, *after))
        if before.get(name, "") != after.get(name, "")
    )


def _environment(before: earlier.Earlier, after: earlier.Earlier) -> tuple[TextChange, ...]:
    return _texts(_surroundings(before), _surroundings(after))


def _surroundings(report: earlier.Earlier) -> dict[str, str]:
    found: dict[str, str] = {}
    if report.environment is not None:
        there = report.environment
        found = {"python": there.python, "platform": there.platform, "processor": there.processor}
        found |= {"cores": str(there.cores), "devices": ", ".join(there.devices), **there.libraries}
    if report.throughput is not None:
        found["threads"] = str(report.throughput.threads)
    return found


def _cautions(before: earlier.Earlier, after: earlier.Earlier) -> Iterable[str]:
    if not _same_data(before, after):
        yield "The two were evaluated on different data: their accuracy figures are not comparable."
    if before.throughput is not None and after.throughput is not None:
        if not _timed_alike(before.throughput, after.throughput):
            yield "The two were timed at different shapes or thread counts: their latencies are not comparable."
        else:
            yield (
                "The two were timed at different times: the interval covers the noise within each measurement, "
                "not what else the machine did. `speedup` compares each with its own original."
            )
    if before.name and after.name and before.name != after.name:
        yield f"The reports are of different recipes: '{before.name}' and '{after.name}'."
