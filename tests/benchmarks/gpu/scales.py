"""One quantized layer in TensorRT, its weight with a scale per channel or one in all: is it right, how fast?

    python tests/benchmarks/gpu/scales.py --output results [--batch 32]

Inputs are half-normal, as behind a ReLU: no outlier takes the scale, so the 8-bit numbers are large, and unscaled
sums of them too. The error is against the product of what was quantized. Writes results/scales.json,
which `docs/gpu/` keeps by its date; `one_scale_in_fp16` in `optimize/targets/engines/tensorrt.yaml` rests on it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimize.engines import registry as engines
from optimize.engines.base import BuildRequest, Engine
from optimize.targets import loading
from passes.base import Pass, PassContext
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int8 import QuantizeInt8
from passes.saving import save
from passes.target import Target
from tests.support.calibration import Batches
from tests.support.runner import run

K, N = 512, 1000
TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}
RULES = "channel, by the rules"
"""In INT8 and 16 bits: one scale in all, the channels' factors behind the product."""


def layer(op: str, kind: ir.DataType, x: np.ndarray[Any, Any]) -> ir.Model:
    """One MatMul, Gemm or Conv with a random weight; its columns' largest values differ by up to 8 times."""
    rng = np.random.default_rng(1)
    shape = {"MatMul": (K, N), "Gemm": (N, K), "Conv": (N, K, 3, 3)}[op]
    stored = rng.normal(size=shape) / np.sqrt(np.prod(shape) / N)
    stored *= rng.uniform(0.125, 1, size=[size if size == N else 1 for size in shape])
    weight = ir.Value(name="w", const_value=ir.tensor(stored.astype(kind.numpy()), name="w"))
    weight.type, weight.shape = ir.TensorType(kind), ir.Shape(shape)
    given = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(x.shape))
    out = ir.Value(name="y", type=ir.TensorType(kind), shape=ir.Shape((x.shape[0], N, *x.shape[2:])))
    known: dict[str, dict[str, Any]] = {"MatMul": {}, "Gemm": {"transB": 1}, "Conv": {"pads": [1, 1, 1, 1]}}
    options = known[op]
    node = ir.node(op, [given, weight], options, outputs=[out], name="layer")
    graph = ir.Graph([given], [out], nodes=[node], initializers=[weight], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def cases() -> Iterator[tuple[str, str, str, str]]:
    """(format, operator, type it computes in, scales)."""
    for kind, op in itertools.product(TYPES, ("MatMul", "Gemm", "Conv")):
        for scales in ("channel", "tensor"):
            if op == "Conv" and kind != "fp16":
                continue
            yield "fp8", op, kind, scales
    for kind, op, scales in itertools.product(TYPES, ("MatMul", "Gemm"), ("channel", RULES)):
        if (kind, scales) != ("fp32", RULES):
            yield "int8", op, kind, scales


def quantizer(form: str, scales: str, target: Target) -> tuple[Pass, Target]:
    """The pass and the target that give a layer these scales."""
    bare = target.quantize.model_copy(update={"one_scale_in_fp16": {}, "keep_first": {}})
    if form == "fp8":
        made = QuantizeFp8(ops=("MatMul", "Gemm", "Conv"), weight_scales=scales)
        return made, target.model_copy(update={"quantize": bare})
    rules = target.quantize if scales == RULES else bare
    return QuantizeInt8(activations="static"), target.model_copy(update={"quantize": rules})


def measure(engine: Engine, target: Target, case: tuple[str, str, str, str], batch: int) -> dict[str, Any]:
    """Share of results that are not finite, relative error of the others, microseconds a run."""
    form, op, kind, scales = case
    shape = (batch, K) if op != "Conv" else (2, K, 7, 7)
    x = np.abs(np.random.default_rng(2).normal(size=shape)).astype(TYPES[kind].numpy())
    model = layer(op, TYPES[kind], x)
    wide = layer(op, ir.DataType.FLOAT, x.astype(np.float32))
    exact = run(wide, {"x": x.astype(np.float32)})["y"].astype(np.float64)
    made, rules = quantizer(form, scales, target)
    made.apply(model, PassContext(target=rules, run=run, calibration=Batches(({"x": x},))))
    with tempfile.TemporaryDirectory() as folder:
        path, into = Path(folder) / "model.onnx", Path(folder) / "built"
        into.mkdir()
        save(model, path)
        built = engine.build(BuildRequest(path, into), lambda what, done, total: None)
        with engine.open(built.path) as session:
            y = session.run({"x": x})["y"].astype(np.float64)
            call = session.prepare({"x": x})
            rounds = []
            for _ in range(9):
                begin = time.perf_counter()
                for _ in range(30):
                    call()
                rounds.append((time.perf_counter() - begin) / 30 * 1e6)
    finite = np.isfinite(y)
    error = np.linalg.norm(y[finite] - exact[finite]) / np.linalg.norm(exact[finite])
    return {
        "format": form, "op": op, "type": kind, "scales": scales, "not_finite": float(1 - finite.mean()),
        "error": float(error), "us": statistics.median(rounds), "kernels": len(built.details["layers"]),
    }  # fmt: skip


def main() -> None:
    """See the module's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    from optimize.engines.tensorrt_library import load

    engine, target = engines.create({"kind": "tensorrt"}), loading.load(given.target, "tensorrt")
    rows: list[dict[str, Any]] = []
    for case in cases():
        try:
            rows.append(measure(engine, target, case, given.batch))
        except Exception as failure:  # one layer that does not build is a row too
            rows.append(dict(zip(("format", "op", "type", "scales"), case, strict=True), failed=str(failure)[:200]))
        print(json.dumps(rows[-1]), flush=True)
        facts = {"target": given.target, "batch": given.batch, "tensorrt": load().version, "rows": rows}
        (given.output / "scales.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
