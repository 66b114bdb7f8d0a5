"""Differences: real changes are told, noise is not, and what cannot be compared is said to be so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from optimize.differences import Difference, FigureChange
from optimize.engines.onnxruntime_session import OnnxRuntimeSession, open_onnx
from optimize.errors import UsageError
from optimize.evaluate.changes import regressions
from optimize.evaluate.diff_models import Side, compare_models
from optimize.evaluate.diff_reports import compare_reports
from optimize.facts import (
    AccuracyResult,
    GateResult,
    Latency,
    LayerFact,
    ModelFacts,
    OutputAccuracy,
    Speedup,
    ThroughputResult,
)

RNG = np.random.default_rng(0)


def graph(size: int, **ops: int) -> ModelFacts:
    return ModelFacts(
        nodes=1,
        ops=ops,
        parameters=1,
        weight_bytes={"float": size},
        size_bytes=size,
        opset=21,
        inputs=(),
        outputs=(),
    )


def timing(median: float, *, threads: int = 2, noise: float = 0.02, runs: int = 60) -> ThroughputResult:
    spread = np.maximum(0.1, 1 + noise * RNG.standard_normal(runs))  # no run ends before it began
    samples = tuple(float(value) for value in median * spread)
    latency = Latency(
        contender="optimized",
        title="",
        samples_ms=samples,
        warmup_runs=1,
        mean_ms=median,
        p50_ms=float(np.median(samples)),
        throughput_per_s=8e3 / float(np.median(samples)),
    )
    speedup = Speedup(
        of="optimized", over="original", ratio=30 / median, low=28 / median, high=32 / median, is_significant=True
    )
    return ThroughputResult(shapes={"x": (8, 4)}, threads=threads, contenders=(latency,), speedups=(speedup,))


def report(
    *, cosine: float = 0.99, data: str = "a", throughput: ThroughputResult | None = None, **parts: Any
) -> dict[str, Any]:
    output = OutputAccuracy(output="y", samples=8, max_abs=0.1, cosine=cosine, sqnr_db=math.inf)
    accuracy = AccuracyResult(stage="engine", outputs=(output,))
    return {
        "name": "demo",
        "accuracy": [accuracy.model_dump(mode="json")],
        "throughput": throughput.model_dump(mode="json") if throughput else None,
        "data": {"evaluation": {"sha256": data}},
        **parts,
    }


def figure(found: Difference, name: str) -> FigureChange:
    return next(item for item in found.figures if item.name == name)


def test_a_report_does_not_differ_from_itself() -> None:
    one = report(throughput=timing(10), optimized=graph(100, MatMul=3).model_dump(mode="json"))
    found = compare_reports(one, one)
    assert {item.direction for item in found.figures} == {"same", "no significant difference"}
    assert (found.ops, found.weights, found.layers, found.gates, found.environment) == ((), (), (), (), ())
    assert regressions(found)["regression.latency"] == 0.0


def test_a_real_slowdown_is_worse_with_its_interval_and_noise_is_not() -> None:
    before = report(throughput=timing(10))
    slower = figure(compare_reports(before, report(throughput=timing(12))), "latency.p50")
    assert slower.direction == "worse"
    assert slower.ratio == pytest.approx(1.2, rel=0.03)
    rate = figure(compare_reports(before, report(throughput=timing(12))), "throughput")
    assert rate.direction == "worse"
    assert rate.ratio == pytest.approx(1 / 1.2, rel=0.03)
    assert slower.low is not None
    assert slower.high is not None
    assert 1 < slower.low < 1.2 < slower.high
    same = compare_reports(report(throughput=timing(10, noise=0.3)), report(throughput=timing(10, noise=0.3)))
    assert figure(same, "latency.p50").direction == "no significant difference"
    assert regressions(same)["regression.latency"] == 0.0


def test_a_gain_in_speed_size_and_accuracy_is_better() -> None:
    found = compare_reports(
        report(cosine=0.9, throughput=timing(10), optimized=graph(100).model_dump(mode="json")),
        report(cosine=0.95, throughput=timing(5), optimized=graph(50).model_dump(mode="json")),
    )
    names = ("accuracy.cosine", "latency.p50", "throughput", "speedup", "size")
    assert {name: figure(found, name).direction for name in names} == dict.fromkeys(names, "better")
    figures = regressions(found)
    assert figures["regression.size"] == pytest.approx(-50)
    assert figures["regression.cosine"] == pytest.approx(-0.05)
    assert figures["regression.latency"] == pytest.approx(-50, abs=2)


def test_latencies_at_other_threads_and_accuracy_on_other_data_have_no_direction() -> None:
    found = compare_reports(
        report(throughput=timing(10)), report(cosine=0.5, data="b", throughput=timing(20, threads=4))
    )
    assert figure(found, "latency.p50").direction is None
    assert figure(found, "accuracy.cosine").direction is None
    assert len([note for note in found.notes if "not comparable" in note]) == 2
    assert "regression.latency" not in regressions(found)


def test_figures_of_one_side_are_listed_without_a_direction() -> None:
    found = figure(compare_reports(report(), report(throughput=timing(10))), "latency.p50")
    assert (found.before, found.direction) == (None, None)


def test_changed_operators_layers_gates_and_libraries_are_listed() -> None:
    def side(ops: dict[str, int], weight: str, passed: bool, version: str) -> dict[str, Any]:
        gate = GateResult(gate="speedup.min", limit=1, value=2, passed=passed)
        environment = {
            "python": "3.11", "platform": "Linux", "processor": "x", "cores": 2, "memory_bytes": 1,
            "libraries": {"onnxruntime": version},
        }  # fmt: skip
        return report(
            optimized=graph(1, **ops).model_dump(mode="json"),
            layers=[LayerFact(name="head", op_type="MatMul", weight=weight).model_dump(mode="json")],
            gates=[gate.model_dump(mode="json")],
            environment=environment,
        )

    found = compare_reports(
        side({"MatMul": 3, "Add": 1}, "", True, "1"), side({"MatMul": 1, "Add": 1}, "int8", False, "2")
    )
    assert [(item.what, item.before, item.after) for item in found.ops] == [("MatMul", 3, 1)]
    assert [(item.what, item.before, item.after) for item in found.layers] == [("head", "", "int8 weight")]
    assert [(item.before, item.after) for item in found.gates] == [("held", "missed")]
    assert [(item.what, item.before, item.after) for item in found.environment] == [("onnxruntime", "1", "2")]


def test_what_is_no_report_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="none that this version reads"):
        compare_reports({"accuracy": 3}, {})


def model(scale: float, output: str = "y", given: str = "x") -> OnnxRuntimeSession:
    built = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 16] {given}) => (float[n, 16] {output}) {{ h = MatMul({given}, w)  {output} = Mul(h, s) }}"""
    )
    weight = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)
    built.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(scale), "s"))
    return open_onnx(built.SerializeToString(), threads=1)


def batches() -> list[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    return [({"x": RNG.standard_normal((8, 16)).astype(np.float32)}, None) for _ in range(3)]


def test_two_models_are_compared_on_the_same_inputs_and_timed_in_turns() -> None:
    left, right = Side("a", model(1.0), graph(10, MatMul=1)), Side("b", model(1.1), graph(12, MatMul=1))
    found = compare_models(left, right, batches(), runs=10, seconds=5)
    assert found.outputs[0].samples == 24
    assert figure(found, "accuracy.relative_l2").after == pytest.approx(0.1, rel=1e-3)
    assert figure(found, "latency.p50").ratio is not None
    assert figure(found, "size").direction == "worse"
    assert regressions(found)["regression.size"] == pytest.approx(20)


def test_an_output_under_another_name_fails() -> None:
    found = compare_models(Side("a", model(1.0)), Side("b", model(1.0, "z")), batches(), runs=0)
    assert found.failures == ("y: missing", "z: the original has no such output")


def test_models_with_different_inputs_are_not_compared() -> None:
    with pytest.raises(UsageError, match=r"different inputs: x \(old\); image \(new\)"):
        compare_models(Side("old", model(1.0)), Side("new", model(1.0, given="image")), batches(), runs=0)


def test_labels_give_both_sides_a_score() -> None:
    (feeds, _), *_ = batches()
    truth = model(1.0).run(feeds)["y"].argmax(1)
    found = compare_models(Side("a", model(1.0)), Side("b", model(-1.0)), [(feeds, truth)], runs=0)
    score = figure(found, "metric.top1")
    assert (score.before, score.direction) == (1.0, "worse")
    assert found.flips == (8, 8)
