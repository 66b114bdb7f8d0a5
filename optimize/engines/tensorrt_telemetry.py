"""The state of the GPU while something is timed: clocks, power, temperature, throttling, memory, energy."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import statistics
import threading
from collections.abc import Callable, Iterator
from typing import Any

from optimize.engines import tensorrt_device
from optimize.errors import BackendMissing

INTERVAL_S = 0.02

THROTTLE_REASONS: dict[int, str] = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean slower than asked (nvml.h, nvmlClocksEventReason*)."""


@dataclasses.dataclass(frozen=True)
class Telemetry:
    """What NVML told during a measurement.

    Attributes:
        samples: How often it was asked.
        sm_clock_mhz, memory_clock_mhz: Medians.
        power_w: Mean.
        temperature_c: Highest.
        memory_bytes: Most in use on the device, by all processes.
        energy_j: Used by the whole device from first to last sample; None where it has no counter.
        throttled: Reasons the clocks were held down at any sample; empty when they never were.
    """

    samples: int
    sm_clock_mhz: float
    memory_clock_mhz: float
    power_w: float
    temperature_c: float
    memory_bytes: int
    energy_j: float | None
    throttled: tuple[str, ...]


class Recording:
    """Filled when its block ends: `telemetry` is None where NVML is not there."""

    telemetry: Telemetry | None = None


@contextlib.contextmanager
def recorded() -> Iterator[Recording]:
    """Sample the first visible device on a thread of its own while the block runs."""
    recording = Recording()
    if importlib.util.find_spec("pynvml") is None:
        yield recording
        return
    import pynvml

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID(tensorrt_device.uuid())
    except (pynvml.NVMLError, BackendMissing):
        yield recording
        return
    stop = threading.Event()
    rows: list[dict[str, Any]] = []
    thread = threading.Thread(target=_sample, args=(pynvml, device, rows, stop), daemon=True)
    thread.start()
    try:
        yield recording
    finally:
        stop.set()
        thread.join()
        recording.telemetry = _summary(rows)
        pynvml.nvmlShutdown()


def _sample(nvml: Any, device: Any, rows: list[dict[str, Any]], stop: threading.Event) -> None:
    readings: dict[str, Callable[[], Any]] = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1e3,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(device).used,
        "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3,
        "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device),
    }
    while True:
        row: dict[str, Any] = {}
        for name, read in readings.items():
            with contextlib.suppress(nvml.NVMLError):  # Some devices lack some sensors.
                row[name] = read()
        rows.append(row)
        if stop.wait(INTERVAL_S):
            return


def _summary(rows: list[dict[str, Any]]) -> Telemetry:
    def values(name: str) -> list[float]:
        return [row[name] for row in rows if name in row] or [float("nan")]

    energy = [row["energy_j"] for row in rows if "energy_j" in row]
    reasons = 0
    for row in rows:
        reasons |= int(row.get("reasons", 0))
    return Telemetry(
        samples=len(rows),
        sm_clock_mhz=statistics.median(values("sm_clock_mhz")),
        memory_clock_mhz=statistics.median(values("memory_clock_mhz")),
        power_w=statistics.fmean(values("power_w")),
        temperature_c=max(values("temperature_c")),
        memory_bytes=int(max((row.get("memory_bytes", 0) for row in rows), default=0)),
        energy_j=energy[-1] - energy[0] if len(energy) > 1 else None,
        throttled=tuple(name for bit, name in THROTTLE_REASONS.items() if reasons & bit),
    )
