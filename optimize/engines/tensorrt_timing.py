"""Times of an engine on its device, told the way a `trtexec` user expects them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from optimize.engines.tensorrt_telemetry import Telemetry

PERCENTILES = (90, 95, 99)


@dataclasses.dataclass(frozen=True)
class GpuTimings:
    """One entry per timed inference, in milliseconds; copies, inference and results do not overlap.

    Attributes:
        enqueue_ms: Host time to put the inference on the stream.
        h2d_ms: Inputs to the device.
        compute_ms: Device time of the inference.
        d2h_ms: Outputs to the host.
        wall_s: Host time of all of them together.
        cuda_graph: Whether inferences were replays of a CUDA graph.
        telemetry: The GPU's state meanwhile; None without nvidia-ml-py.
    """

    enqueue_ms: tuple[float, ...]
    h2d_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    d2h_ms: tuple[float, ...]
    wall_s: float
    cuda_graph: bool
    telemetry: Telemetry | None = None

    @property
    def latency_ms(self) -> tuple[float, ...]:
        """H2D + GPU compute + D2H of each inference."""
        rows = zip(self.h2d_ms, self.compute_ms, self.d2h_ms, strict=True)
        return tuple(sum(row) for row in rows)

    @property
    def throughput_per_s(self) -> float:
        """Inferences per second of wall time."""
        return len(self.compute_ms) / self.wall_s

    @property
    def joules_per_inference(self) -> float | None:
        """Energy of the whole device per inference; None where it has no counter or the run was too short."""
        energy = self.telemetry.energy_j if self.telemetry else None
        return energy / len(self.compute_ms) if energy else None

    def rows(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Latency, Enqueue, H2D, GPU Compute, D2H, each with min, max, mean, median and percentiles.

        A last row, "Device", tells the GPU's state where it was recorded; `throttled` names what held its
        clocks down, and is empty when nothing did.
        """
        times = tuple(
            (name, statistics(samples))
            for name, samples in (
                ("Latency", self.latency_ms),
                ("Enqueue", self.enqueue_ms),
                ("H2D", self.h2d_ms),
                ("GPU Compute", self.compute_ms),
                ("D2H", self.d2h_ms),
            )
        )
        if self.telemetry is None:
            return times
        state = dataclasses.asdict(self.telemetry) | {"joules_per_inference": self.joules_per_inference}
        return (*times, ("Device", state))


def statistics(samples: Sequence[float]) -> dict[str, float]:
    """Minimum, maximum, mean, median and percentiles, `trtexec`'s way: an observed value, no interpolation.

    The p-th percentile of n sorted samples is the one at index n - 1 - floor((1 - p) n) (trtexec's source).
    """
    ordered = sorted(samples)
    count = len(ordered)
    middle = count // 2
    median = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    found = {"min": ordered[0], "max": ordered[-1], "mean": math.fsum(ordered) / count, "median": median}
    for percent in PERCENTILES:
        skipped = int((100 - percent) * count / 100)
        found[f"p{percent}"] = ordered[max(count - 1 - skipped, 0)]
    return found
