"""Timing in turns: real work is told apart, equal work is not, and few runs claim little."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from optimize.engines.onnxruntime_session import OnnxRuntimeSession, open_onnx
from optimize.errors import BackendMissing, UsageError
from optimize.evaluate import energy, memory
from optimize.evaluate.intervals import ratio_of_medians
from optimize.evaluate.throughput import measure

X = np.ones((4, 8), np.float32)


class Spinning:
    """A session that keeps a core busy for a known time; what it did is on record."""

    def __init__(self, seconds: float, log: list[str], name: str) -> None:
        self.seconds, self.log, self.name = seconds, log, name

    def prepare(self, feeds: Any) -> Callable[[], None]:
        def call() -> None:
            self.log.append(self.name)
            end = time.perf_counter() + self.seconds
            while time.perf_counter() < end:
                pass

        return call


def spinning(**seconds: float) -> tuple[dict[str, Any], list[str]]:
    log: list[str] = []
    return {name: Spinning(value, log, name) for name, value in seconds.items()}, log


def multiplying(size: int) -> OnnxRuntimeSession:
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 8] x) => (float[n, {size}] y) {{ a = MatMul(x, w)  b = MatMul(a, v)  y = MatMul(b, v) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, size)), ("v", (size, size))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return open_onnx(model.SerializeToString(), threads=1)


def test_a_faster_engine_is_found_faster_with_its_interval() -> None:
    sessions = {"original": multiplying(512), "optimized": multiplying(64)}
    result = measure(sessions, {"x": X}, runs=40, seconds=20, threads=1)
    (speedup,) = result.speedups
    assert (speedup.of, speedup.over) == ("optimized", "original")
    assert speedup.is_significant
    assert speedup.low > 1.5
    assert speedup.low <= speedup.ratio <= speedup.high
    assert result.threads == 1
    assert result.shapes == {"x": (4, 8)}
    original, _ = result.contenders
    assert original.title.startswith("onnxruntime")
    assert len(original.samples_ms) == 40
    assert original.throughput_per_s == pytest.approx(4e3 / original.p50_ms)


def test_contenders_take_turns_and_each_turn_starts_with_an_untimed_run() -> None:
    sessions, log = spinning(original=1e-4, exported=1e-4, optimized=1e-4)
    result = measure(sessions, {"x": X}, runs=20, seconds=20)
    timed = log[sum(item.warmup_runs for item in result.contenders) :]
    turns = [timed[start : start + 6] for start in range(0, len(timed), 6)]
    assert all(len(set(turn)) == 1 for turn in turns)
    rounds = [[turn[0] for turn in turns[start : start + 3]] for start in range(0, len(turns), 3)]
    assert len(rounds) == 4
    assert all(sorted(names) == ["exported", "optimized", "original"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert {(item.of, item.over) for item in result.speedups} == {
        ("optimized", "original"),
        ("optimized", "exported"),
    }


def test_known_times_come_out() -> None:
    """The least of the runs: on a busy machine any run may take longer, none shorter."""
    sessions, _ = spinning(original=4e-3, optimized=2e-3)
    result = measure(sessions, {"x": X}, runs=30, seconds=20)
    least = {item.contender: min(item.samples_ms) for item in result.contenders}
    assert least["original"] == pytest.approx(4.0, rel=0.05)
    assert least["optimized"] == pytest.approx(2.0, rel=0.05)


def test_percentiles_need_enough_runs() -> None:
    sessions, _ = spinning(a=1e-5)
    few = measure(sessions, {"x": X}, runs=15, seconds=20).contenders[0]
    some = measure(sessions, {"x": X}, runs=50, seconds=20).contenders[0]
    many = measure(sessions, {"x": X}, runs=100, seconds=20).contenders[0]
    assert (few.p90_ms, few.p99_ms) == (None, None)
    assert some.p99_ms is None
    assert some.p90_ms in some.samples_ms
    assert many.p99_ms is not None
    assert many.p50_ms <= many.p90_ms <= many.p99_ms  # type: ignore[operator]


def test_time_runs_out_after_whole_rounds() -> None:
    sessions, _ = spinning(a=5e-3, b=5e-3)
    started = time.monotonic()
    result = measure(sessions, {"x": X}, runs=10_000, seconds=0.5)
    assert time.monotonic() - started < 50  # all runs would take 100 s
    counts = {len(item.samples_ms) for item in result.contenders}
    assert len(counts) == 1
    assert any("time limit allowed" in note for note in result.notes)


def test_the_collector_rests_while_timing_and_comes_back() -> None:
    states: list[bool] = []

    class Watching:
        def prepare(self, feeds: Any) -> Callable[[], None]:
            return lambda: states.append(gc.isenabled())

    measure({"a": Watching()}, {"x": X}, runs=5, seconds=5)  # type: ignore[dict-item]
    assert not any(states)
    assert gc.isenabled()


def test_nothing_to_time_is_said() -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        measure({}, {"x": X})


def test_another_thread_count_is_noted() -> None:
    result = measure({"a": multiplying(8)}, {"x": X}, runs=5, seconds=5, threads=3)
    assert "a was allowed 1 threads, not 3." in result.notes


def test_equal_sides_have_no_significant_difference_and_the_interval_covers() -> None:
    """Of 200 comparisons of equal sides about 5 % may claim a difference; 12 % would be a broken interval."""
    rng = np.random.default_rng(0)
    claimed = 0
    for _ in range(200):
        drift = 1 + 0.3 * rng.random((12, 1))
        left, right = (drift * (10 + rng.exponential(1, (12, 5))) for _ in range(2))
        claimed += ratio_of_medians(left.tolist(), right.tolist(), rng).is_significant
    assert claimed <= 24


def test_shared_drift_does_not_hide_a_true_ratio() -> None:
    rng = np.random.default_rng(0)
    drift = 1 + rng.random((12, 1))
    left = drift * (11 + 0.05 * rng.standard_normal((12, 5)))
    right = drift * (10 + 0.05 * rng.standard_normal((12, 5)))
    found = ratio_of_medians(left.tolist(), right.tolist(), rng)
    assert found.is_significant
    assert found.low <= 1.1 <= found.high


def test_peak_memory_sees_an_allocation_and_can_be_reset() -> None:
    before = memory.peak_of_current_process()
    block = np.ones(32 << 20, np.uint8)
    during = memory.peak_of_current_process()
    assert before is not None
    assert during is not None
    assert during >= block.nbytes
    del block
    if memory.reset_peak():
        after = memory.peak_of_current_process()
        assert after is not None
        assert after <= during


def test_a_single_run_of_each_tells_nothing_of_which_is_faster() -> None:
    sessions, _ = spinning(original=0.2, optimized=0.001)
    result = measure(sessions, {"x": X}, runs=60, seconds=0.1, threads=1)
    assert len(result.contenders[0].samples_ms) < 4
    assert not result.speedups[0].is_significant
    assert any("say nothing of which is faster" in note for note in result.notes)


class Leaving:
    """A counter that shows one figure and then goes away."""

    device, source = "CPU", "a test"

    def __init__(self) -> None:
        self.shown = 0

    def joules(self) -> float:
        self.shown += 1
        if self.shown > 1:
            raise BackendMissing("it went away")
        return 0.0


def test_a_counter_that_goes_away_leaves_the_timing_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SECONDS", 0.0)
    sessions, _ = spinning(original=0.0002, optimized=0.0001)
    result = measure(sessions, {"x": X}, runs=10, seconds=5, meters=[Leaving()], energy_missing="GPU: none here")
    assert all(item.samples_ms and not item.energy for item in result.contenders)
    assert result.energy_missing == "GPU: none here; CPU: it went away"
