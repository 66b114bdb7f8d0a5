"""Which batch sizes are worth waiting for, from the engine's measured curve of latency against batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from optimize.bundle.triton.tensors import Interface, example
from optimize.engines.base import Progress, Session

WARMUP_RUNS = 2
RUNS = 7
GOOD = 0.9
"""Share of the best throughput at which a batch size counts as good."""

LONGEST_WAIT_US = 5000

SECONDS = 30.0
"""Time the whole curve may take, a little over when one size turns out slower than its neighbour promised."""


def sizes(max_batch: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and the largest itself."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power <= max_batch]
    return tuple(sorted({*powers, max_batch}))


def curve(session: Session, io: Interface, progress: Progress, *, seconds: float = SECONDS) -> dict[int, float]:
    """Median latency in milliseconds per batch size, at the dynamic axes' typical sizes.

    Args:
        seconds: Larger sizes are left out once they would take the whole beyond this.
    """
    found: dict[int, float] = {}
    all_sizes = sizes(io.max_batch)
    began = time.perf_counter()
    for number, size in enumerate(all_sizes):
        progress(f"timing batches of {size}", number, len(all_sizes))
        if found:
            before = max(found)
            expected = found[before] * size / before / 1e3 * (WARMUP_RUNS + RUNS)
            if time.perf_counter() - began + expected > seconds:
                break
        feeds = {tensor.name: np.repeat(example(tensor)[None], size, axis=0) for tensor in io.inputs}
        call = session.prepare(feeds)
        for _ in range(WARMUP_RUNS):
            call()
        samples = []
        for _ in range(RUNS):
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e3)
        found[size] = statistics.median(samples)
    return found


def preferred(latency_ms: dict[int, float]) -> tuple[int, ...]:
    """Batch sizes above 1 whose throughput is at least 90 % of the best; none when batching gains nothing.

    Args:
        latency_ms: Median latency per batch size.
    """
    throughput = {size: size / latency for size, latency in latency_ms.items()}
    best = max(throughput.values(), default=0.0)
    if best <= 0 or throughput.get(1, 0.0) >= GOOD * best:
        return ()
    return tuple(size for size in sorted(throughput) if size > 1 and throughput[size] >= GOOD * best)


def queue_delay_us(latency_ms: dict[int, float], chosen: Sequence[int]) -> int:
    """How long a request may wait for others: a tenth of the smallest preferred batch's latency, at most 5 ms."""
    if not chosen:
        return 0
    return min(LONGEST_WAIT_US, round(latency_ms[min(chosen)] * 100))
