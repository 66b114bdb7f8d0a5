"""Gates: always judged, and what was not measured never passes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.errors import UsageError
from optimize.evaluate.gates import figures_of, judge, read_previous
from optimize.facts import AccuracyResult, Energy, Latency, ModelFacts, OutputAccuracy, Speedup, ThroughputResult
from optimize.figures import FIGURES


def output(name: str = "y", **fields: Any) -> OutputAccuracy:
    figures = {"samples": 8, "max_abs": 0.1, "mean_abs": 0.01, "relative_l2": 0.05, "sqnr_db": 26.0}
    return OutputAccuracy(output=name, **{**figures, "cosine": 0.998, "cosine_min": 0.99, **fields})


def timing(p50: float = 10.0, threads: int = 2, **fields: Any) -> ThroughputResult:
    def latency(name: str, median: float) -> Latency:
        return Latency(
            contender=name, title=name, samples_ms=(median,), warmup_runs=1, mean_ms=median, p50_ms=median,
            throughput_per_s=8e3 / median, peak_memory_bytes=100_000_000, **fields,
        )  # fmt: skip

    def speedup(over: str, ratio: float) -> Speedup:
        return Speedup(
            of="optimized", over=over, ratio=ratio, low=0.9 * ratio, high=1.1 * ratio, is_significant=True
        )

    return ThroughputResult(
        shapes={"x": (8, 128)},
        threads=threads,
        contenders=(latency("original", 2 * p50), latency("exported", 1.5 * p50), latency("optimized", p50)),
        speedups=(speedup("original", 2.0), speedup("exported", 1.5)),
    )


def graph(size: int) -> ModelFacts:
    return ModelFacts(
        nodes=1, ops={}, parameters=1, weight_bytes={}, size_bytes=size, opset=21, inputs=(), outputs=()
    )


def result(*outputs: OutputAccuracy, **fields: Any) -> AccuracyResult:
    return AccuracyResult(stage="engine", outputs=outputs, **fields)


def judged(gate: str, limit: float, *stages: AccuracyResult, **more: Any) -> tuple[bool, str]:
    figures = figures_of(stages, more.get("throughput"), more.get("exported"), more.get("optimized"))
    (verdict,) = judge({gate: limit}, figures)
    return verdict.passed, verdict.note


def test_every_figure_that_gates_may_name_can_be_had() -> None:
    accuracy = result(
        output(top1_agreement=0.99, neighbour_agreement=0.9), metrics={"a": 0.9}, reference_metrics={"a": 0.95}
    )
    previous = {
        "accuracy": [result(output(cosine=0.999)).model_dump(mode="json")],
        "throughput": timing(9.0).model_dump(mode="json"),
        "optimized": graph(50).model_dump(mode="json"),
    }
    energy = Energy(device="CPU", source="RAPL", joules_per_sample=0.05, watts=45.0, runs=9, seconds=2.0)
    throughput = timing(p90_ms=11.0, p99_ms=12.0, energy=(energy,))
    figures = figures_of([accuracy], throughput, graph(200), graph(55), previous)
    assert figures["energy"] == 0.05
    named = {name.partition(".")[0] if name.startswith(("metric", "drop")) else name for name in figures}
    assert named == set(FIGURES)
    assert figures["drop.a"] == pytest.approx(0.05)
    assert figures["speedup"] == 2.0
    assert figures["size_ratio"] == pytest.approx(200 / 55)
    assert figures["regression.latency"] == pytest.approx(100 / 9)
    assert figures["regression.size"] == pytest.approx(10)
    assert figures["regression.cosine"] == pytest.approx(0.001)


def test_a_gpus_run_is_not_judged_by_the_processors_counter() -> None:
    energy = [
        Energy(device=device, source="", joules_per_sample=joules, watts=1.0, runs=3, seconds=2.0)
        for device, joules in (("CPU", 0.05), ("GPU", 0.4))
    ]
    for metered, figure in ((energy, 0.4), (energy[:1], None)):
        throughput = timing(device="cuda", energy=tuple(metered))
        assert figures_of([], throughput, None, None).get("energy") == figure


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_figure_that_was_not_measured_fails_its_gate_and_says_why(name: str) -> None:
    gate = f"{name}.top1.min" if name in ("metric", "drop") else f"{name}.max"
    (verdict,) = judge({gate: 1e9}, {})
    assert not verdict.passed
    assert verdict.value is None
    assert len(verdict.note) > 10


def test_limits_count_as_held_and_bounds_are_not_mixed_up() -> None:
    assert judged("accuracy.cosine.min", 0.998, result(output()))[0]
    assert not judged("accuracy.cosine.min", 0.9981, result(output()))[0]
    assert judged("accuracy.max_abs.max", 0.1, result(output()))[0]
    assert not judged("accuracy.max_abs.max", 0.09, result(output()))[0]


def test_the_worst_output_and_the_last_stage_are_judged() -> None:
    bad, good = output("b", cosine=0.5), output("a", cosine=0.99)
    assert not judged("accuracy.cosine.min", 0.9, result(good, bad))[0]
    assert not judged("accuracy.cosine.min", 0.9, result(good), result(bad))[0]
    assert judged("accuracy.cosine.min", 0.9, result(bad), result(good))[0]


def test_a_missing_output_leaves_no_figure_for_the_others_to_hide_behind() -> None:
    missing = OutputAccuracy(output="b", failure="missing")
    passed, note = judged("accuracy.cosine.min", 0.5, result(output("a"), missing))
    assert not passed
    assert "an output is missing" in note


@pytest.mark.parametrize("bound", ["min", "max"])
def test_not_a_number_passes_no_gate(bound: str) -> None:
    passed, note = judged(f"accuracy.cosine.{bound}", 0.5, result(output(cosine=math.nan), output("b")))
    assert (passed, note) == (False, "the figure is not a number")


def test_infinite_errors_fail_and_infinite_sqnr_passes() -> None:
    assert not judged("accuracy.max_abs.max", 1e30, result(output(max_abs=math.inf)))[0]
    assert judged("accuracy.sqnr.min", 100, result(output(sqnr_db=math.inf)))[0]


def test_an_unknown_metric_names_the_known_ones() -> None:
    assert "measured: top1" in judged("metric.top5.min", 0.5, result(output(), metrics={"top1": 0.9}))[1]


def test_an_unknown_gate_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"no figure is called 'accuracy\.cosinus'"):
        judge({"accuracy.cosinus.min": 1}, {})


def test_a_limit_inside_the_interval_is_noted() -> None:
    throughput = timing()
    figures = figures_of([], throughput, None, None)
    (verdict,) = judge({"speedup.min": 1.9}, figures, throughput.speedups)
    assert verdict.passed
    assert "within the 95 % interval, 1.8 to 2.2" in verdict.note


def test_units_come_with_the_figure() -> None:
    verdicts = judge({"size.max": 40e6, "latency.p50.max": 12}, {"size": 39.9e6, "latency.p50": 20})
    assert [(verdict.unit, verdict.passed) for verdict in verdicts] == [("bytes", True), ("ms", False)]
    assert verdicts[0].note == "close to its limit"


def test_what_is_at_best_one_is_close_to_its_limit_by_its_distance_from_one() -> None:
    limits = {"accuracy.cosine.min": 0.999}
    far, near = (judge(limits, {"accuracy.cosine": value})[0] for value in (0.999998, 0.99905))
    assert (far.note, near.note) == ("", "close to its limit")
    assert judge({"regression.cosine.max": 0.001}, {"regression.cosine": 0.0005})[0].note == ""


def test_a_latency_timed_otherwise_is_no_regression_figure() -> None:
    previous = {"throughput": timing(9.0, threads=1).model_dump(mode="json")}
    assert "regression.latency" not in figures_of([], timing(), None, None, previous)


def test_a_latency_that_differs_by_noise_alone_is_no_regression() -> None:
    def noisy(seed: int, median: float) -> ThroughputResult:
        taken = median * (1 + 0.2 * np.random.default_rng(seed).standard_normal(60))
        result = timing(float(np.median(taken)))
        contenders = tuple(item.model_copy(update={"samples_ms": tuple(taken)}) for item in result.contenders)
        return result.model_copy(update={"contenders": contenders})

    previous = {"throughput": noisy(0, 10).model_dump(mode="json")}
    assert figures_of([], noisy(1, 10), None, None, previous)["regression.latency"] == 0.0
    assert figures_of([], noisy(1, 15), None, None, previous)["regression.latency"] > 30


def test_a_previous_report_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_previous(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        read_previous(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"accuracy": [{"stage": 3}]}))
    with pytest.raises(UsageError, match="none that this version reads"):
        figures_of([], None, None, None, read_previous(tmp_path))


def test_infinities_survive_the_way_through_json(tmp_path: Path) -> None:
    stage = result(output(sqnr_db=math.inf, cosine=0.9))
    (tmp_path / "report.json").write_text(json.dumps({"accuracy": [stage.model_dump(mode="json")]}))
    figures = figures_of([result(output(cosine=0.8))], None, None, None, read_previous(tmp_path))
    assert figures["regression.cosine"] == pytest.approx(0.1)
