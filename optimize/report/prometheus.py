"""The report's figures for Prometheus, as a file for node_exporter's textfile collector.

Labels that name a device are spelled as dcgm-exporter spells them (`modelName`), so that
`optimize_latency_seconds` and `DCGM_FI_DEV_POWER_USAGE`, `DCGM_FI_DEV_FB_USED` or `DCGM_FI_DEV_SM_CLOCK` can be
joined on one dashboard. Names and units follow Prometheus' naming rules: base units, the unit as a suffix.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping

from optimize.report import wording
from optimize.report.headline import worst
from optimize.report.model import Report

HELP = {
    "optimize_run_info": "What ran; always 1.",
    "optimize_run_passed": "1 when every gate holds and every output is sound.",
    "optimize_run_start_timestamp_seconds": "When the run started.",
    "optimize_gate_passed": "1 when the gate holds.",
    "optimize_gate_value": "The gate's figure, in its unit.",
    "optimize_gate_limit": "The gate's limit, in its unit.",
    "optimize_latency_seconds": "Latency percentiles of each contender.",
    "optimize_throughput_samples_per_second": "Samples per second at the median latency.",
    "optimize_peak_memory_bytes": "Peak resident memory of a process that runs the contender alone.",
    "optimize_energy_joules_per_sample": "Energy per sample, by the counter of the whole device.",
    "optimize_power_watts": "Mean power of the whole device while the contender runs without a pause.",
    "optimize_speedup_ratio": "Latency of `over` divided by the optimised engine's; bound: the 95 % interval.",
    "optimize_model_size_bytes": "ONNX with its weights.",
    "optimize_accuracy_cosine": "Mean cosine against the original after each stage; worst output.",
    "optimize_accuracy_relative_error": "Relative L2 error against the original after each stage; worst output.",
    "optimize_accuracy_sqnr_decibels": "Signal to quantization noise after each stage; worst output.",
    "optimize_task_metric": "Task metrics of the last stage compared, and of the original.",
    "optimize_stage_duration_seconds": "Wall time of each stage; of the original computation when reused.",
}
"""Every metric, all of them gauges."""

Sample = tuple[str, Mapping[str, str], float | None]


def render(report: Report) -> str:
    """The exposition text; metrics without a value are left out."""
    base = {"recipe": report.name}
    if report.target.get("name"):
        base["target"] = str(report.target["name"])
    if report.environment.devices:
        base["modelName"] = report.environment.devices[0]
    lines: dict[str, list[str]] = {name: [] for name in HELP}
    for name, labels, value in _samples(report):
        if value is not None:
            text = ",".join(f'{key}="{_label(item)}"' for key, item in {**base, **labels}.items())
            lines[name].append(f"{name}{{{text}}} {_number(value)}")
    return "".join(
        f"# HELP {name} {HELP[name]}\n# TYPE {name} gauge\n" + "".join(f"{line}\n" for line in found)
        for name, found in lines.items()
        if found
    )


def _samples(report: Report) -> Iterator[Sample]:
    yield (
        "optimize_run_info",
        {"version": report.tool_version, "recipe_sha256": report.recipe_sha256, "verdict": report.verdict},
        1.0,
    )
    yield "optimize_run_passed", {}, float(report.verdict == "PASS")
    yield "optimize_run_start_timestamp_seconds", {}, _timestamp(report.started_at)
    for gate in report.gates:
        labels = {"gate": gate.gate}
        yield "optimize_gate_passed", labels, float(gate.passed)
        yield "optimize_gate_value", labels, gate.value
        yield "optimize_gate_limit", labels, gate.limit
    yield from _timings(report)
    for name, facts in (("exported", report.exported), ("optimized", report.optimized)):
        yield "optimize_model_size_bytes", {"model": name}, facts.size_bytes if facts else None
    yield from _accuracy(report)
    for stage in report.stages:
        if stage.outcome in ("done", "reused"):
            labels = {"stage": stage.name, "outcome": stage.outcome}
            yield "optimize_stage_duration_seconds", labels, stage.seconds


def _timings(report: Report) -> Iterator[Sample]:
    if report.throughput is None:
        return
    for item in report.throughput.contenders:
        labels = {"contender": item.contender}
        for quantile, value in (("0.5", item.p50_ms), ("0.9", item.p90_ms), ("0.99", item.p99_ms)):
            seconds = None if value is None else value / 1000
            yield "optimize_latency_seconds", {**labels, "quantile": quantile}, seconds
        yield "optimize_throughput_samples_per_second", labels, item.throughput_per_s
        yield "optimize_peak_memory_bytes", labels, item.peak_memory_bytes
        for used in item.energy:
            yield "optimize_energy_joules_per_sample", {**labels, "device": used.device}, used.joules_per_sample
            yield "optimize_power_watts", {**labels, "device": used.device}, used.watts
    for ratio in report.throughput.speedups:
        if ratio.of == "optimized":
            for bound, value in (("estimate", ratio.ratio), ("low", ratio.low), ("high", ratio.high)):
                yield "optimize_speedup_ratio", {"over": ratio.over, "bound": bound}, value


def _accuracy(report: Report) -> Iterator[Sample]:
    seen: dict[str, int] = {}
    for result in report.accuracy:
        # A pass may run twice; a metric with the same labels twice would make the whole file invalid.
        seen[result.stage] = seen.get(result.stage, 0) + 1
        labels = {"stage": result.stage if seen[result.stage] == 1 else f"{result.stage} {seen[result.stage]}"}
        yield "optimize_accuracy_cosine", labels, worst(result, "cosine", low_is_bad=True)
        yield "optimize_accuracy_relative_error", labels, worst(result, "relative_l2", low_is_bad=False)
        yield "optimize_accuracy_sqnr_decibels", labels, worst(result, "sqnr_db", low_is_bad=True)
    if report.accuracy:
        for of, metrics in (
            ("optimized", report.accuracy[-1].metrics),
            ("original", report.accuracy[-1].reference_metrics),
        ):
            for name, value in metrics.items():
                yield "optimize_task_metric", {"metric": name, "of": of}, value


def _timestamp(text: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _label(text: str) -> str:
    return wording.one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
