from __future__ import annotations

from optimize.facts import GateResult, OutputAccuracy, Speedup
from optimize.report import headline
from tests.support import reports


def with_speedup(ratio: float, *, is_significant: bool) -> headline.Headline:
    report = reports.passing()
    assert report.throughput is not None
    speedup = Speedup(
        of="optimized", over="original", ratio=ratio, low=ratio * 0.9, high=ratio * 1.1,
        is_significant=is_significant,
    )  # fmt: skip
    timed = report.throughput.model_copy(update={"speedups": (speedup,)})
    return headline.headlines(report.model_copy(update={"throughput": timed}))[0]


def test_the_sentence_says_how_much_faster_smaller_and_how_true() -> None:
    assert headline.sentence(reports.passing()) == "3.1 × faster, 3.9 × smaller, cosine 0.99707"


def test_a_slower_engine_is_called_slower() -> None:
    head = with_speedup(0.5, is_significant=True)
    assert (head.value, head.unit) == ("2.0 ×", "slower")


def test_an_insignificant_speedup_is_not_called_faster() -> None:
    head = with_speedup(1.02, is_significant=False)
    assert head.unit == "no significant difference"
    assert "no significant difference from original: 1.0 × (95 %: 0.918–1.12)" in " ".join(head.lines)


def test_an_original_on_another_device_is_not_the_headline() -> None:
    report = reports.passing()
    assert report.throughput is not None
    places = {"original": "cpu", "exported": "cuda", "optimized": "cuda"}
    ratios = {"original": 180.0, "exported": 2.5}
    timed = report.throughput.model_copy(
        update={
            "contenders": tuple(
                item.model_copy(update={"device": places[item.contender]}) for item in report.throughput.contenders
            ),
            "speedups": tuple(
                Speedup(of="optimized", over=name, ratio=ratio, low=ratio, high=ratio, is_significant=True)
                for name, ratio in ratios.items()
            ),
        }
    )
    head = headline.headlines(report.model_copy(update={"throughput": timed}))[0]
    assert (head.value, head.unit) == ("2.5 ×", "faster")
    assert "180 × (95 %: 180–180) over original, which ran on the CPU" in head.lines


def test_every_gate_stands_with_the_number_it_judges() -> None:
    gates = tuple(
        GateResult(gate=f"{name}.min", limit=1, value=2, passed=True)
        for name in ("speedup", "latency.p90", "size_ratio", "memory", "metric.size", "drop.top1",
                     "regression.latency", "regression.size", "regression.cosine")
    )  # fmt: skip
    speed, size, accuracy = headline.headlines(reports.passing(gates=gates))
    assert [gate.gate for gate in speed.gates] == ["speedup.min", "latency.p90.min", "regression.latency.min"]
    assert [gate.gate for gate in size.gates] == ["size_ratio.min", "memory.min", "regression.size.min"]
    assert [gate.gate for gate in accuracy.gates] == [
        "metric.size.min", "drop.top1.min", "regression.cosine.min",
    ]  # fmt: skip


def test_a_run_that_broke_names_the_stage_and_its_reason() -> None:
    text = headline.reason(reports.broken())
    assert text == "Stage 'build' failed: TensorRT: no kernel for node 'conv_3'."
    assert headline.sentence(reports.broken()) == "3.9 × smaller"


def test_missed_gates_are_counted_and_named() -> None:
    assert headline.reason(reports.failing()) == "2 of 4 gates failed: accuracy.cosine.min, latency.p99.max"


def test_an_unsound_output_is_the_headline_and_fails_the_run() -> None:
    report = reports.passing()
    final = report.accuracy[-1].model_copy(
        update={"outputs": (OutputAccuracy(output="embedding", failure="missing"),)}
    )
    report = report.model_copy(update={"accuracy": (*report.accuracy[:-1], final)})
    assert report.verdict == "FAIL"
    assert headline.reason(report) == "An output cannot be accepted: embedding: missing"
    assert "unsound output" in headline.sentence(report)


def test_the_worst_output_counts() -> None:
    final = reports.passing().accuracy[-1]
    good, bad = final.outputs[0], final.outputs[0].model_copy(update={"output": "b", "cosine": 0.5})
    two = final.model_copy(update={"outputs": (good, bad)})
    assert headline.worst(two, "cosine", low_is_bad=True) == 0.5
    unknown = final.model_copy(update={"outputs": (good, bad.model_copy(update={"cosine": None}))})
    assert headline.worst(unknown, "cosine", low_is_bad=True) is None


def test_changed_decisions_are_told_in_a_sentence() -> None:
    changed = reports.accuracy("engine", 0.1, decisions=50_000, flips_total=412, flips_worse=247, flips_better=62)
    assert headline.flips(changed) == "412 of 50,000 changed, 60 % from right to wrong, 15 % from wrong to right"
    assert headline.flips(changed.model_copy(update={"flips_worse": None})) == "412 of 50,000 changed"
    report = reports.passing(accuracy=(changed,))
    assert headline.flips(changed) in headline.headlines(report)[2].lines


def test_energy_a_sample_stands_with_the_speed() -> None:
    assert "652 mJ → 208 mJ a sample (RAPL, whole package)" in headline.headlines(reports.passing())[0].lines
