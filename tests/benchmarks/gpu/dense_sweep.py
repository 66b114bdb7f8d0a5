"""Which way of cutting is fastest for an encoder layer's products, attention and norm, in the built-in plugin.

    python tests/benchmarks/gpu/dense_sweep.py --output results [--processes 12] [--seconds 170]

The ways are compiled in several processes, checked against torch in float32, and timed as CUDA graphs over as many
different weights as the encoder has layers. Writes results/dense_sweep.json, which `docs/gpu/` keeps by its date;
`optimize/engines/tensorrt_dense_choice.py` takes the fastest.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from optimize.engines import tensorrt_attention_kernels as attending
from optimize.engines import tensorrt_dense_kernels as dense
from optimize.engines.tensorrt_dense_choice import AttentionCut, Cut, Form, NormCut

BATCH, TOKENS, HEADS, SIZE, LAYERS = 32, 128, 12, 64, 12
ROWS, WIDTH = BATCH * TOKENS, HEADS * SIZE
LIMIT = 2**-10
"""Relative error allowed: y is rounded to float16, and a residual was."""

PRODUCTS: dict[str, tuple[int, int, Form, bool]] = {
    "up": (4 * WIDTH, WIDTH, Form.GELU_TANH, False),
    "down": (WIDTH, 4 * WIDTH, Form.PLAIN, True),
    "qkv": (3 * WIDTH, WIDTH, Form.PLAIN, False),
    "out": (WIDTH, WIDTH, Form.PLAIN, True),
}
"""N, K, form, whether a residual is added."""


def cuts() -> list[Cut]:
    """The ways to be tried, likely ones first."""
    wide: dict[str, Any] = {"described": True}
    return [
        Cut(128, 256, warps=8, stages=3, **wide), Cut(128, 128, warps=4, stages=3, **wide),
        Cut(128, 128, warps=8, stages=4, more=64, **wide), Cut(128, 256, warps=8, stages=4, **wide),
        Cut(128, 128, warps=8, stages=3, more=64, **wide), Cut(128, 128, warps=8, stages=5, more=64, **wide),
        Cut(128, 256, warps=8, stages=3, turns=1, **wide), Cut(128, 128, warps=8, stages=3, **wide),
        Cut(128, 128, warps=8, stages=4, **wide), Cut(128, 128, warps=4, stages=4, **wide),
        Cut(256, 128, warps=8, stages=3, **wide), Cut(128, 64, warps=4, stages=4, **wide),
        Cut(128, 128, warps=8, stages=4, turns=1, **wide), Cut(128, 128, warps=4, stages=3, turns=2, **wide),
        Cut(64, 256, warps=4, stages=4, **wide), Cut(64, 128, warps=4, stages=4, **wide),
        Cut(256, 128, warps=8, stages=4, turns=1, **wide), Cut(64, 128, warps=4, stages=3, more=64, **wide),
        Cut(128, 128, depth=128, warps=8, stages=3, **wide), Cut(256, 64, warps=8, stages=4, **wide),
        Cut(128, 256, warps=8, stages=3), Cut(128, 128, warps=4, stages=3), Cut(128, 128, warps=8, stages=4),
        Cut(128, 128, warps=8, stages=4, more=64), Cut(128, 64, warps=4, stages=4), Cut(64, 128, warps=4, stages=4),
    ]  # fmt: skip


def jobs() -> list[tuple[str, Cut, bool]]:
    """(product, cut, whether w is stored as (N, K)) in the order of trial."""
    made = []
    for transposed in (False, True):
        for cut, (name, (n, _, _, residual)) in itertools.product(cuts(), PRODUCTS.items()):
            if n % (cut.columns + cut.more):
                continue
            if transposed and not (cut.described and cut.turns == 0 and cut.columns + cut.more >= 128):
                continue
            made.append((name, cut, transposed))
            if residual and not transposed and cut.described:
                made.append((name, dataclasses.replace(cut, early=True), False))
    return made


@dataclasses.dataclass(frozen=True)
class Given:
    """Tensors of one product: x and residual `(rows, ·)`, weights `(layers, K, N)`, biases `(layers, N)`."""

    x: torch.Tensor
    weights: torch.Tensor
    biases: torch.Tensor
    residual: torch.Tensor | None
    sizes: dense.Sizes

    def expected(self, layer: int) -> torch.Tensor:
        """y in float32."""
        y = self.x.float() @ self.weights[layer].float() + self.biases[layer].float()
        if self.sizes.form is Form.GELU_TANH:
            y = functional.gelu(y, approximate="tanh")
        return y if self.residual is None else y + self.residual.float()


def given(name: str, layers: int) -> Given:
    """The product's tensors, the same for the same name."""
    n, k, form, residual = PRODUCTS[name]
    torch.manual_seed(n + k)
    half: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
    return Given(
        torch.randn(ROWS, k, **half), torch.randn(layers, k, n, **half) / k**0.5, torch.randn(layers, n, **half),
        torch.randn(ROWS, n, **half) if residual else None, dense.Sizes(ROWS, n, k, form),
    )  # fmt: skip


def graph_us(call: Callable[[int], Any], rounds: int = 7) -> float:
    """Microseconds of one `call(layer)`, median over rounds, as a CUDA graph of all layers."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for layer in range(LAYERS):
            call(layer)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for layer in range(LAYERS):
                call(layer)
        times = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            start.record(stream)
            for _ in range(10):
                graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end) * 100 / LAYERS)
    return float(statistics.median(times))


def launcher(tensors: Given, cut: Cut, transposed: bool) -> tuple[Callable[[int], Any], torch.Tensor]:
    """`call(layer)`, and where it writes."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    weights = tensors.weights.transpose(1, 2).contiguous() if transposed else tensors.weights
    sizes = dataclasses.replace(tensors.sizes, transposed=transposed)
    y = torch.full((ROWS, sizes.n), float("nan"), device="cuda", dtype=torch.float16)

    def call(layer: int) -> None:
        dense.launch(
            tensors.x, weights[layer], tensors.biases[layer], tensors.residual, y, sizes, cut, processors
        )  # fmt: skip

    return call, y


def check(part: int, of: int) -> None:
    """Compile every `of`-th job and print its error, or why it fails: a process of its own."""
    for number, kind in enumerate((attentions, norms)):
        if part == number:
            list(kind())  # Compiles them.
    tensors = {name: given(name, 1) for name in PRODUCTS}
    wanted = {name: one.expected(0) for name, one in tensors.items()}
    for number, (name, cut, transposed) in enumerate(jobs()):
        if number % of != part:
            continue
        try:
            call, y = launcher(tensors[name], cut, transposed)
            call(0)
            torch.cuda.synchronize()
            error = float((y.float() - wanted[name]).norm() / wanted[name].norm())
            print(json.dumps({"job": number, "error": error}), flush=True)
        except Exception as failure:
            print(json.dumps({"job": number, "failed": f"{type(failure).__name__}: {failure}"[:200]}), flush=True)
            if isinstance(failure, getattr(torch, "AcceleratorError", ())):
                raise


def baselines() -> dict[str, dict[str, float]]:
    """cuBLAS as torch calls it, in microseconds: the bare product, and with what follows it."""
    found: dict[str, dict[str, float]] = {}
    for name in PRODUCTS:
        one = given(name, LAYERS)
        y = torch.empty(ROWS, one.sizes.n, device="cuda", dtype=torch.float16)
        x, w, b, residual = one.x, one.weights, one.biases, one.residual

        def bare(layer: int, x: Any = x, w: Any = w, y: Any = y) -> None:
            torch.mm(x, w[layer], out=y)

        def biased(layer: int, x: Any = x, w: Any = w, b: Any = b) -> None:
            torch.addmm(b[layer], x, w[layer])

        def bent(layer: int, x: Any = x, w: Any = w, b: Any = b) -> None:
            torch._addmm_activation(b[layer], x, w[layer], use_gelu=True)

        def added(layer: int, x: Any = x, w: Any = w, y: Any = y, residual: Any = residual) -> None:
            torch.addmm(residual, x, w[layer], out=y)

        ways: dict[str, Callable[[int], Any]] = {"cuBLAS": bare, "cuBLAS + bias": biased}
        if one.sizes.form is Form.GELU_TANH:
            ways["cuBLASLt + bias + GELU"] = bent
        if residual is not None:
            ways["cuBLAS + residual"] = added
        found[name] = {way: graph_us(call) for way, call in ways.items()}
        print(name, found[name], flush=True)
    return found


def attentions() -> Iterator[dict[str, Any]]:
    """Ways to cut attention, with error and microseconds."""
    torch.manual_seed(0)
    qkv = torch.randn(BATCH, TOKENS, 3 * WIDTH, device="cuda", dtype=torch.float16)
    y = torch.empty(BATCH, TOKENS, WIDTH, device="cuda", dtype=torch.float16)
    parts = (part.view(BATCH, TOKENS, HEADS, SIZE).transpose(1, 2) for part in qkv.float().chunk(3, -1))
    wanted = functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(y.shape)
    for rows, keys, warps in ((64, 128, 4), (128, 128, 4), (128, 128, 8), (64, 64, 4), (128, 64, 8), (128, 64, 4)):
        cut = AttentionCut(rows, keys, warps)

        def call(_: int, cut: AttentionCut = cut) -> None:
            attending.launch_attention(qkv, y, BATCH, TOKENS, HEADS, SIZE, SIZE**-0.5, cut)

        taken = graph_us(call)
        error = float((y.float() - wanted).norm() / wanted.norm())
        yield {"cut": dataclasses.asdict(cut), "us": taken, "error": error}


def norms() -> Iterator[dict[str, Any]]:
    """Ways to cut layer normalisation, with error and microseconds."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.float16)
    weights = torch.randn(2, WIDTH, device="cuda", dtype=torch.float16)
    y = torch.empty_like(x)
    wanted = functional.layer_norm(x.float(), (WIDTH,), weights[0].float(), weights[1].float())
    for rows, warps in ((1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)):
        cut = NormCut(rows, warps)

        def call(_: int, cut: NormCut = cut) -> None:
            attending.launch_layer_norm(x, weights, y, ROWS, WIDTH, 1e-5, cut)

        taken = graph_us(call)
        error = float((y.float() - wanted).norm() / wanted.norm())
        yield {"cut": dataclasses.asdict(cut), "us": taken, "error": error}


def main() -> None:
    """Compile and check in processes, time here, write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=170.0)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        check(options.part, options.processes)
        return
    started = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--output", str(options.output), "--processes", str(options.processes)]
    running = [
        subprocess.Popen(
            [*command, "--part", str(part)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for part in range(options.processes)
    ]  # fmt: skip
    checked: dict[int, dict[str, Any]] = {}
    for process in running:
        try:
            text, _ = process.communicate(timeout=max(1.0, options.seconds * 0.65 - (time.monotonic() - started)))
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        for line in text.splitlines():
            checked[json.loads(line)["job"]] = json.loads(line)
    print(f"compiled and checked {len(checked)} of {len(jobs())} in {time.monotonic() - started:.0f} s", flush=True)
    facts: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "baselines": {}}
    facts["attention"], facts["norm"] = list(attentions()), list(norms())
    for kind in ("attention", "norm"):
        print(kind, *sorted((round(one["us"], 2), str(one["cut"])) for one in facts[kind]), sep="\n  ", flush=True)
    facts["baselines"] = baselines()
    rows: list[dict[str, Any]] = []
    tensors = {name: given(name, LAYERS) for name in PRODUCTS}
    for number, (name, cut, transposed) in enumerate(jobs()):
        row: dict[str, Any] = {"product": name, "cut": dataclasses.asdict(cut), "transposed": transposed}
        row |= checked.get(number, {"failed": "not compiled in time"})
        rows.append(row)
        if row.get("error", 1.0) < LIMIT and time.monotonic() - started < options.seconds:
            row["us"] = graph_us(launcher(tensors[name], cut, transposed)[0])
    facts["products"] = rows
    for name in PRODUCTS:
        timed = sorted((row for row in rows if row["product"] == name and "us" in row), key=lambda row: row["us"])
        print(name, *(f"{row['us']:.2f} {'t ' * row['transposed']}{row['cut']}" for row in timed[:5]), sep="\n  ")
    (options.output / "dense_sweep.json").write_text(json.dumps(facts, indent=1))
    print(f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
