"""Faults that no key has alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Faults = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates: {regression.latency.max: 3%}", "compares with an earlier run; say which under previous:"),
        ("gates: {speedup.min: 2}\nevaluate: {throughput: null}", "evaluate.throughput is null"),
        ("gates: {latency.p50.max: 2ms}\nevaluate: {throughput: null}", "evaluate.throughput is null"),
        (
            "gates: {speedup_over_export.min: 2}\nevaluate: {throughput: {contenders: [original, optimized]}}",
            "needs 'exported' among evaluate.throughput.contenders",
        ),
        ("gates: {drop.top1.max: 0.1}", "name the labels under evaluate.labels"),
        ("gates: {metric.f1.min: 0.1}\nevaluate: {labels: y}", "labels alone give the metric 'top1' only"),
        (
            "gates: {accuracy.top1_agreement.min: 0.9}\nevaluate: {kind: embedding}",
            "kind classification, got embedding",
        ),
        (
            "gates: {accuracy.neighbour_agreement.min: 1}\nevaluate: {kind: regression}",
            "kind embedding, got regression",
        ),
        ("gates: {size.min: 2MB, size.max: 1MB}", "below size.min, so that no run can pass"),
        ("gates: {accuracy.cosine.min: 99}", "above 1, the highest it can be, so that no run can pass"),
        ("gates: {latency.p50.max: -1ms}", "below 0, the lowest it can be, so that no run can pass"),
        ("evaluate: {throughput: {contenders: [compiled]}}", "an ONNX source has no torch.compile form"),
        (
            "source: {kind: onnx, path: m, ranges: {batch: {minimum: 1, typical: 2, maximum: 4}}}\n"
            "evaluate: {throughput: {shapes: {batch: 8}}}",
            "expected 1 to 4 (source.ranges.batch), got 8",
        ),
    ],
)
def test_what_this_run_cannot_give_is_refused(text: str, message: str, faults: Faults) -> None:
    (fault,) = faults(text + "\n", whole=False)
    assert message in fault
    assert fault.startswith("recipe.yaml:")


@pytest.mark.parametrize(
    "text",
    [
        "gates: {regression.latency.max: 3%}\nprevious: report.json",
        "gates: {drop.top1.max: 0.1}\nevaluate: {labels: y}",
        "gates: {metric.f1.min: 0.1}\nevaluate: {metric: 'm.py:f1'}",
        "gates: {accuracy.top1_agreement.min: 0.9, size.max: 1MB, accuracy.sqnr.min: 20dB}",
        "gates: {size.max: 1MB}\nevaluate: {throughput: null}",
    ],
)
def test_what_this_run_gives_is_taken(text: str, faults: Faults) -> None:
    assert faults(text + "\n", whole=False) == []
