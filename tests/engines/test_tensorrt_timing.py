"""Times told the way a `trtexec` user expects them."""

from __future__ import annotations

import pytest

from optimize.engines import tensorrt_device, tensorrt_telemetry
from optimize.engines.tensorrt_telemetry import Telemetry
from optimize.engines.tensorrt_timing import GpuTimings, statistics

STATE = Telemetry(
    samples=5, sm_clock_mhz=1980, memory_clock_mhz=3201, power_w=500, temperature_c=60, memory_bytes=1,
    energy_j=8.0, throttled=("power cap",),
)  # fmt: skip


def timings(telemetry: Telemetry | None = None) -> GpuTimings:
    return GpuTimings(
        enqueue_ms=(0.1,) * 4, h2d_ms=(1.0, 1.0, 1.0, 5.0), compute_ms=(2.0, 2.0, 3.0, 2.0), d2h_ms=(1.0,) * 4,
        wall_s=0.02, cuda_graph=True, telemetry=telemetry,
    )  # fmt: skip


def test_latency_is_copies_and_compute_together() -> None:
    assert timings().latency_ms == (4.0, 4.0, 5.0, 8.0)
    assert timings().throughput_per_s == pytest.approx(200)


def test_percentiles_are_observed_values_as_in_trtexec() -> None:
    told = statistics([float(value) for value in range(1, 101)])
    # trtexec: sorted[n - 1 - int((1 - p) * n)]
    assert (told["p90"], told["p95"], told["p99"]) == (90.0, 95.0, 99.0)
    assert (told["min"], told["max"], told["mean"], told["median"]) == (1.0, 100.0, 50.5, 50.5)
    assert statistics([7.0])["p99"] == 7.0


def test_the_rows_are_trtexecs_and_the_device_comes_last() -> None:
    assert [name for name, _ in timings().rows()] == ["Latency", "Enqueue", "H2D", "GPU Compute", "D2H"]
    name, state = timings(STATE).rows()[-1]
    assert name == "Device"
    assert state["joules_per_inference"] == 2.0
    assert state["throttled"] == ("power cap",)


@pytest.mark.skipif(tensorrt_device.find() is not None, reason="a GPU is here")
def test_without_a_gpu_nothing_is_recorded() -> None:
    with tensorrt_telemetry.recorded() as recording:
        pass
    assert recording.telemetry is None


def test_a_throttle_reason_seen_once_marks_the_run() -> None:
    rows = [
        {"sm_clock_mhz": 1980, "power_w": 400.0, "energy_j": 100.0, "reasons": 0},
        {"sm_clock_mhz": 1500, "power_w": 600.0, "energy_j": 112.0, "reasons": 0x04 | 0x01},
        {"sm_clock_mhz": 1980, "power_w": 500.0, "energy_j": 130.0, "reasons": 0},
    ]
    told = tensorrt_telemetry._summary(rows)
    assert told.throttled == ("power cap",)
    assert told.energy_j == 30.0
    assert (told.sm_clock_mhz, told.power_w) == (1980, 500.0)
