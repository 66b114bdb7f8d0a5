"""Figures of a run by the names gates use, and gates judged against them. What has no value fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimize.errors import UsageError
from optimize.evaluate import earlier, regression
from optimize.facts import AccuracyResult, GateResult, ModelFacts, OutputAccuracy, Speedup, ThroughputResult
from optimize.figures import split_gate

Figures = dict[str, float]

NEAR = 0.02
"""A figure within this share of its limit is worth a note."""

NEAR_PERFECT = 0.1
"""The same for what is at best one: share of the distance from the limit to one."""

_HIGHER_IS_BETTER = ("cosine", "cosine_min", "sqnr", "top1_agreement", "neighbour_agreement")
_FIELDS = {
    "cosine": "cosine",
    "cosine_min": "cosine_min",
    "sqnr": "sqnr_db",
    "relative_l2": "relative_l2",
    "max_abs": "max_abs",
    "mean_abs": "mean_abs",
    "top1_agreement": "top1_agreement",
    "neighbour_agreement": "neighbour_agreement",
}
_REASONS = {
    "accuracy.top1_agreement": "no output was read as classes: set evaluate.kind: classification",
    "accuracy.neighbour_agreement": "no output was read as embeddings of three samples or more: "
    "set evaluate.kind: embedding",
    "accuracy": "not measured: an output is missing or of another shape, or the original's is zero throughout",
    "metric": "no such metric was measured: see evaluate.labels and evaluate.metric",
    "drop": "no such metric was measured on both sides: see evaluate.labels and evaluate.metric",
    "speedup": "the original and the optimised engine were not both timed: see evaluate.throughput",
    "speedup_over_export": "the exported and the optimised engine were not both timed: see evaluate.throughput",
    "latency.p90": "not timed, or fewer runs than a 90th percentile needs (20): see evaluate.throughput.runs",
    "latency.p99": "not timed, or fewer runs than a 99th percentile needs (100): see evaluate.throughput.runs",
    "latency": "the optimised engine was not timed: see evaluate.throughput",
    "throughput": "the optimised engine was not timed: see evaluate.throughput",
    "size": "the run made no optimised model",
    "size_ratio": "the run made no optimised model",
    "memory": "the optimised engine's memory was not measured: see evaluate.throughput",
    "energy": "the energy counter of the device that the optimised engine ran on could not be read",
    "regression.latency": "no earlier report (previous:) with a latency at the same shapes and threads",
    "regression": "no earlier report (previous:) with this figure",
}


def figures_of(
    accuracy: Sequence[AccuracyResult],
    throughput: ThroughputResult | None,
    exported: ModelFacts | None,
    optimized: ModelFacts | None,
    previous: Mapping[str, Any] | None = None,
) -> Figures:
    """Every figure that was measured, by its name in `optimize.figures`, in the figure's unit.

    Args:
        accuracy: The stages in order; the last one is judged.
        throughput: Timing of "original", "exported" and "optimized".
        exported: The exported graph.
        optimized: The optimised graph.
        previous: An earlier report, as `read_previous` gives it.
    """
    figures = _accuracy(accuracy[-1]) if accuracy else {}
    figures.update(_speed(throughput))
    if optimized is not None:
        figures["size"] = float(optimized.size_bytes)
        if exported is not None and optimized.size_bytes:
            figures["size_ratio"] = exported.size_bytes / optimized.size_bytes
    if previous is not None:
        figures.update(_regression(figures, throughput, previous))
    return figures


def judge(
    gates: Mapping[str, float], figures: Mapping[str, float], speedups: Sequence[Speedup] = ()
) -> tuple[GateResult, ...]:
    """Each gate against its figure, in the recipe's order; one without a figure fails, with the reason.

    Args:
        gates: Limit by gate name, in the figure's unit.
        figures: What `figures_of` found.
        speedups: Timed ratios, so that a gate can say when its limit lies inside the interval.

    Raises:
        UsageError: When a name is no gate.
    """
    return tuple(_judge(gate, limit, figures, speedups) for gate, limit in gates.items())


def read_previous(path: Path) -> dict[str, Any]:
    """An earlier report as data; a folder stands for the report.json in it.

    Raises:
        UsageError: When it cannot be read.
    """
    return earlier.load(path)


def _judge(gate: str, limit: float, figures: Mapping[str, float], speedups: Sequence[Speedup]) -> GateResult:
    try:
        name, bound, figure = split_gate(gate)
    except ValueError as error:
        raise UsageError(f"gates: {error}.") from error
    value = figures.get(name)
    if value is None or math.isnan(value):
        note = "the figure is not a number" if value is not None else _reason(name, figures)
        return GateResult(gate=gate, limit=limit, value=value, unit=figure.unit, passed=False, note=note)
    passed = value >= limit if bound == "min" else value <= limit
    note = _interval_note(name, limit, speedups) or _near_note(name, value, limit, passed)
    return GateResult(gate=gate, limit=limit, value=value, unit=figure.unit, passed=passed, note=note)


def _reason(name: str, figures: Mapping[str, float]) -> str:
    head, _, rest = name.partition(".")
    if head in ("metric", "drop"):
        known = sorted(key.partition(".")[2] for key in figures if key.startswith(f"{head}."))
        if known:
            return f"no metric is called '{rest}'; measured: {', '.join(known)}"
    return _REASONS.get(name) or _REASONS[head]


def _interval_note(name: str, limit: float, speedups: Sequence[Speedup]) -> str:
    over = {"speedup": "original", "speedup_over_export": "exported"}.get(name)
    for item in speedups:
        if item.of == "optimized" and item.over == over and item.low <= limit <= item.high:
            return f"the limit lies within the 95 % interval, {item.low:.3g} to {item.high:.3g}"
    return ""


def _near_note(name: str, value: float, limit: float, passed: bool) -> str:
    if not passed or limit == 0 or not math.isfinite(value):
        return ""
    at_best_one = (
        name.startswith("accuracy.") and name.endswith(("cosine", "cosine_min", "_agreement")) and limit < 1
    )
    width = NEAR_PERFECT * (1 - limit) if at_best_one else NEAR * abs(limit)
    return "close to its limit" if 0 < abs(value - limit) <= width and value not in (0, 1) else ""


def _accuracy(final: AccuracyResult) -> Figures:
    figures: Figures = {}
    # an output that could not be compared has no figures: the rest must not speak for it
    if not any(output.failure and output.max_abs is None for output in final.outputs):
        for name, field in _FIELDS.items():
            worst = _worst(final.outputs, field, min if name in _HIGHER_IS_BETTER else max)
            if worst is not None:
                figures[f"accuracy.{name}"] = worst
    for name, value in final.metrics.items():
        figures[f"metric.{name}"] = value
        if name in final.reference_metrics:
            figures[f"drop.{name}"] = final.reference_metrics[name] - value
    return figures


def _worst(outputs: Sequence[OutputAccuracy], field: str, worse: Callable[..., float]) -> float | None:
    values = [value for output in outputs if (value := getattr(output, field)) is not None]
    if any(math.isnan(value) for value in values):
        return math.nan
    return worse(values) if values else None


def _speed(throughput: ThroughputResult | None) -> Figures:
    if throughput is None:
        return {}
    figures: Figures = {}
    for speedup in throughput.speedups:
        if speedup.of == "optimized" and speedup.over == "original":
            figures["speedup"] = speedup.ratio
        if speedup.of == "optimized" and speedup.over == "exported":
            figures["speedup_over_export"] = speedup.ratio
    for item in throughput.contenders:
        if item.contender != "optimized":
            continue
        found = {
            "latency.p50": item.p50_ms,
            "latency.p90": item.p90_ms,
            "latency.p99": item.p99_ms,
            "throughput": item.throughput_per_s,
            "memory": item.peak_memory_bytes,
        }
        figures.update({name: float(value) for name, value in found.items() if value is not None})
        if item.own_energy is not None:
            figures["energy"] = item.own_energy.joules_per_sample
    return figures


def _regression(now: Figures, throughput: ThroughputResult | None, previous: Mapping[str, Any]) -> Figures:
    """Figures against the earlier report's; a latency only where both were timed alike."""
    report = earlier.parts(previous)
    before = figures_of(report.accuracy, report.throughput, None, report.optimized)
    figures: Figures = {}
    if "latency.p50" in now and regression.timed_alike(report.throughput, throughput):
        ratio = regression.latency_ratio(report.throughput, throughput)
        if ratio is not None:
            # a difference that noise explains is none
            figures["regression.latency"] = 100 * (ratio.ratio - 1) if ratio.is_significant else 0.0
    if before.get("size") and "size" in now:
        figures["regression.size"] = 100 * (now["size"] / before["size"] - 1)
    if "accuracy.cosine" in before and "accuracy.cosine" in now:
        figures["regression.cosine"] = before["accuracy.cosine"] - now["accuracy.cosine"]
    return figures
