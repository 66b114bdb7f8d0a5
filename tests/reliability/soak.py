"""Serves and times a finished run at full load: `python -m tests.reliability.soak RUN --minutes 60`.

Two loads at once: clients ask a real Triton Inference Server for the run's engine over HTTP and gRPC in batches
of changing size, each answer checked against the engine's own, and `optimize bench` times the same engine. The
anonymous memory of each load's processes is sampled. Fails when a request fails, an answer is wrong, or memory
grows after the first quarter. Writes `docs/reliability/soak.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from optimize.bundle.triton import repository
from optimize.bundle.triton.options import ServingOptions
from optimize.engines.base import TensorSpec
from optimize.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.triton.server import serve

RESULT = Path("docs/reliability/soak.json")
SAMPLE_S = 10.0
GROWTH = 0.05
"""Share by which the median memory of the last quarter may exceed that of the second."""

SHOWN = 12
"""Samples of memory that are kept, evenly spaced."""

BATCHES, LENGTHS = (1, 2, 3, 4, 6, 8), (16, 64, 128)
"""Rows of a request, and the size of every other dynamic axis."""

TOLERANCE = 1e-5
"""Largest difference from the engine's own answer: rows that share a batch are summed in another order."""

Inputs = dict[str, np.ndarray]


class Memory:
    """Anonymous memory of a process and all below it, sampled until told to stop."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._stopped, self.samples = process, threading.Event(), list[int]()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            total = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    text = Path(f"/proc/{process.pid}/status").read_text()
                    total += int(text.partition("RssAnon:")[2].split()[0]) * 1024
            except (psutil.Error, OSError, IndexError):
                continue
            self.samples.append(total)

    def stop(self) -> dict[str, Any]:
        """Early and late medians, and whether the difference is growth."""
        self._stopped.set()
        self._thread.join()
        quarter = max(1, len(self.samples) // 4)
        early = statistics.median(self.samples[quarter : 2 * quarter] or self.samples)
        late = statistics.median(self.samples[-quarter:])
        return {
            "memory_mb": [round(value / 1e6, 1) for value in self.samples[:: max(1, len(self.samples) // SHOWN)]],
            "memory_grew": late > early * (1 + GROWTH),
        }


def questions(inputs: tuple[TensorSpec, ...], chance: np.random.Generator) -> list[Inputs]:
    """One request for each batch size and length: token ids and the like for integers, normal numbers else."""
    found = []
    for batch in BATCHES:
        for length in LENGTHS:
            request = {}
            for spec in inputs:
                shape = [batch, *(size if isinstance(size, int) else length for size in spec.shape[1:])]
                is_whole = np.dtype(spec.dtype).kind in "iu"
                numbers = np.ones(shape) if "mask" in spec.name else chance.integers(0, 1000, shape)
                request[spec.name] = (numbers if is_whole else chance.normal(size=shape)).astype(spec.dtype)
            found.append(request)
    return found


def asker(protocol: str, address: str, model: str) -> Callable[[Inputs], Inputs]:
    """A client that keeps its connection."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import np_to_triton_dtype

    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    client = module.InferenceServerClient(address)

    def ask(request: Inputs) -> Inputs:
        tensors = []
        for name, value in request.items():
            tensor = module.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        answer = client.infer(model, tensors)
        response = answer.get_response()
        outputs = response["outputs"] if protocol == "http" else response.outputs
        names = [item["name"] if protocol == "http" else item.name for item in outputs]
        return {name: answer.as_numpy(name) for name in names}

    return ask


def serving(run: Path, minutes: float, clients: int, scratch: Path) -> dict[str, Any]:
    """Load on the server."""
    repository.write(run, scratch / "repository", ServingOptions(name="soak", backend="python"))
    engine = run / "engine" / "engine.onnx"
    with OnnxRuntimeEngine().open(engine) as session:
        requests = questions(tuple(session.inputs), np.random.default_rng(0))
        wanted = [session.run(request) for request in requests]
    latencies: list[list[float]] = [[] for _ in range(clients)]
    faults: list[str] = []
    with serve(scratch / "repository" / "models", scratch / "log") as server:
        memory = Memory(psutil.Process(server.process.pid))
        ends = time.monotonic() + minutes * 60

        def load(number: int) -> None:
            protocol = ("http", "grpc")[number % 2]
            ask = asker(protocol, getattr(server, protocol), "soak")
            chance = np.random.default_rng(number)
            ordered = iter(range(len(requests)))  # all clients in step at first: the largest batches come early
            while time.monotonic() < ends:
                chosen = next(ordered, None)
                chosen = int(chance.integers(len(requests))) if chosen is None else chosen
                started = time.monotonic()
                try:
                    answer = ask(requests[chosen])
                    latencies[number].append(time.monotonic() - started)
                    off = max(float(np.abs(answer[name] - wanted[chosen][name]).max()) for name in wanted[chosen])
                    if not off <= TOLERANCE:
                        faults.append(f"an answer is off by {off:.3g}")
                except Exception as error:
                    faults.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=load, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = memory.stop()
    for fault in sorted(set(faults))[:10]:
        sys.stderr.write(f"{fault}\n")
    took = [value * 1e3 for part in latencies for value in part]
    return {
        "load": f"Triton server, {clients} clients over HTTP and gRPC",
        "minutes": minutes,
        "requests": len(took),
        "failed": len(faults),
        **_percentiles(took),
        **held,
    }


def timing(run: Path, minutes: float) -> dict[str, Any]:
    """`optimize bench` as a user types it."""
    engine = run / "engine" / "engine.onnx"
    words = ["bench", str(engine), "--runs", "100000000"]
    with OnnxRuntimeEngine().open(engine) as session:
        axes = {size: place for spec in session.inputs for place, size in enumerate(spec.shape)}
    for axis, place in axes.items():
        if isinstance(axis, str):
            words += ["--size", f"{axis}={LENGTHS[1] if place else BATCHES[-1]}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "optimize", *words, "--seconds", str(minutes * 60), "--json", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory = Memory(psutil.Process(process.pid))
    shown, said = process.communicate()
    held = memory.stop()
    if process.returncode != 0:
        sys.stderr.write(said)
    took = json.loads(shown)["contenders"][0]["samples_ms"] if process.returncode == 0 else []
    return {
        "load": "`optimize bench`, one thread",
        "minutes": minutes,
        "requests": len(took),
        "failed": int(process.returncode != 0),
        **_percentiles(took),
        **held,
    }


def _percentiles(took: list[float]) -> dict[str, float | None]:
    ordered = sorted(took)
    return {
        f"p{share}_ms": round(ordered[int(len(ordered) * share / 100)], 1) if ordered else None
        for share in (50, 99)
    }


def main() -> None:
    """Run both loads and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="Folder of a finished run for ONNX Runtime.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        beside = threading.Thread(target=lambda: rows.append(timing(given.run, given.minutes)))
        beside.start()
        rows.append(serving(given.run, given.minutes, given.clients, Path(scratch)))
        beside.join()
    rows.sort(key=lambda row: str(row["load"]))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")
    if len(rows) != 2 or any(row["failed"] or row["memory_grew"] or not row["requests"] for row in rows):
        raise SystemExit("a request failed, an answer was wrong or memory grew: see the figures")


if __name__ == "__main__":
    main()
