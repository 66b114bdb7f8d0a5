"""This processor's rates: measured where a target has none, left alone where it has."""

from __future__ import annotations

import pytest

from optimize.evaluate import processor_rates
from optimize.targets import loading


def test_a_processor_gets_rates_that_were_measured_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_rates, "PART_S", 0.02)
    found = processor_rates.with_rates(loading.load("cpu", "onnxruntime"), threads=1)
    assert set(found.peak_ops_per_s) == {"fp32", "int8"}
    # Any 64-bit processor does a billion and none of today's cores a hundred million million.
    assert all(1e9 < rate < 1e14 for rate in found.peak_ops_per_s.values())
    assert found.bandwidth_bytes_per_s is not None
    assert 1e8 < found.bandwidth_bytes_per_s < 1e13
    for fact in ("peak_ops_per_s", "bandwidth_bytes_per_s"):
        assert found.sources[fact].startswith("measured on this machine")


def test_the_best_of_several_counts_not_the_first_or_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 10.5, 20.0, 24.0])
    monkeypatch.setattr(processor_rates.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(processor_rates, "PART_S", 0.0)
    assert processor_rates._best(lambda: None) == 0.5


def test_a_gpu_keeps_its_data_sheet() -> None:
    target = loading.load("h100", "tensorrt")
    assert processor_rates.with_rates(target, threads=2) is target
