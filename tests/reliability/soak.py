"""Runs an engine at full load for a while: `python -m tests.reliability.soak ENGINE.onnx --minutes 60`.

Several clients share one session and send batches of changing shape; memory and latency are sampled every ten
seconds. Fails when a request fails or when memory grows after the first tenth. Writes `docs/reliability/soak.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.onnxruntime_session import open_onnx
from optimize.pipeline.memory import anonymous_bytes

RESULT = Path("docs/reliability/soak.json")
SAMPLE_S = 10.0
GROWTH = 0.05
"""Share by which the median memory of the last tenth may exceed that of the second."""


def soak(model: Path, minutes: float, clients: int, sizes: dict[str, tuple[int, int]], seed: int) -> dict[str, Any]:
    """Load the engine and keep every client busy until the time is over.

    Args:
        model: An ONNX file or an optimised one.
        minutes: How long.
        clients: Threads that send requests.
        sizes: Smallest and largest size of each dynamic axis.
        seed: For shapes and values.
    """
    ends = time.monotonic() + minutes * 60
    done, failed, latencies, memory = [0] * clients, [0] * clients, [[] for _ in range(clients)], []
    with open_onnx(model, optimized=True) as session:

        def client(number: int) -> None:
            rng = np.random.default_rng(seed + number)
            while time.monotonic() < ends:
                chosen = {axis: int(rng.integers(low, high + 1)) for axis, (low, high) in sizes.items()}
                feeds = {}
                for spec in session.inputs:
                    shape = [size if isinstance(size, int) else chosen[str(size)] for size in spec.shape]
                    whole = np.dtype(spec.dtype).kind in "iu"
                    feeds[spec.name] = (rng.integers(0, 2, shape) if whole else rng.normal(size=shape)).astype(
                        spec.dtype
                    )
                started = time.monotonic()
                try:
                    outputs = session.run(feeds)
                    if not all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind == "f"):
                        failed[number] += 1
                except Exception:
                    failed[number] += 1
                latencies[number].append(time.monotonic() - started)
                done[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(anonymous_bytes() or 0)
            for thread in threads:
                thread.join(timeout=SAMPLE_S / clients)
    tenth = max(1, len(memory) // 10)
    early = statistics.median(memory[tenth : 2 * tenth] or memory)
    late = statistics.median(memory[-tenth:])
    everything = sorted(value for part in latencies for value in part)
    return {
        "minutes": minutes,
        "clients": clients,
        "requests": sum(done),
        "failed": sum(failed),
        "latency_ms_p50": round(everything[len(everything) // 2] * 1e3, 2),
        "latency_ms_p99": round(everything[int(len(everything) * 0.99)] * 1e3, 2),
        "memory_early_mb": round(early / 1e6, 1),
        "memory_late_mb": round(late / 1e6, 1),
        "memory_grew": late > early * (1 + GROWTH),
    }


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--size", action="append", default=[], metavar="AXIS=LOW:HIGH")
    given = parser.parse_args()
    sizes = {}
    for item in given.size:
        axis, _, span = item.partition("=")
        low, _, high = span.partition(":")
        sizes[axis] = (int(low), int(high))
    facts = soak(given.model, given.minutes, given.clients, sizes, seed=0)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=2) + "\n")
    if facts["failed"] or facts["memory_grew"]:
        raise SystemExit(json.dumps(facts))


if __name__ == "__main__":
    main()
