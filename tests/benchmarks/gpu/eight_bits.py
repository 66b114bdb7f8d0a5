"""Whether a GPU gains by weights and data in 8 bits: a chain of products in FP16, INT8 and FP8, timed in turns.

    python tests/benchmarks/gpu/eight_bits.py --output results [--target h200] [--rounds 40]

Needs a TensorRT on PYTHONPATH and this repository's folder on it. Writes results/eight-bits.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from run import environment
from timing import Contender, interleaved, summary

from optimize.engines.base import AxisRange, BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.targets import loading
from passes import registry, saving
from tests.support.calibration import normal
from tests.support.runner import context

ROWS, WIDTH, DEPTH = 4096, 2048, 4
FORMATS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "fp16": None,
    "int8 weights and data": ("quantize.int8", {"activations": "static"}),
    "fp8 weights and data": ("quantize.fp8", {}),
}


def main() -> None:
    """Build the three, time them, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).normal(0, 1, (ROWS, WIDTH)).astype(np.float32)
    facts: dict[str, Any] = {
        "environment": environment(), "rounds": options.rounds, "rows": ROWS, "width": WIDTH, "depth": DEPTH,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        made: dict[str, Any] = {}
        contenders = []
        for number, (name, step) in enumerate(FORMATS.items()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            model = chain()
            if step is not None:
                world = context(loading.load(options.target, "tensorrt"), calibration=normal((64, WIDTH)))
                registry.find(step[0]).model_validate(step[1]).apply(model, world)
            registry.find("cast.fp16")().apply(model, context(loading.load(options.target, "tensorrt")))
            saving.save(model, folder / "model.onnx")
            engine = TensorRTEngine(TensorRTOptions())
            request = BuildRequest(folder / "model.onnx", folder, ranges={"n": AxisRange(64, ROWS, ROWS)})
            artifact = engine.build(request, lambda what, done, total: None)
            lane = stack.enter_context(engine.open(artifact.path)).lane
            lane.bind({"x": x})
            lane.upload()
            stream = torch.cuda.ExternalStream(lane.stream.handle)
            contenders.append(Contender(name, lane.replayed(cuda_graph=True), stream))
            made[name] = {"summary": artifact.details["summary"], "notes": artifact.details["notes"]}
        for name, samples in interleaved(contenders, rounds=options.rounds).items():
            made[name] |= {"samples_ms": samples, **summary(samples)}
            print(
                f"{name}: {made[name]['median_ms']:.3f} ms; {made[name]['summary']}; {made[name]['notes']}",
                flush=True,
            )
    (options.output / "eight-bits.json").write_text(json.dumps(facts | {"contenders": made}, indent=2))


def chain() -> ir.Model:
    """`DEPTH` products of `(n, WIDTH)` with random weights, a Relu between."""
    lines = []
    for layer in range(DEPTH):
        source = "x" if layer == 0 else f"r{layer - 1}"
        lines += [f"h{layer} = MatMul({source}, w{layer})", f"r{layer} = Relu(h{layer})"]
    body = " ".join(lines).replace(f"r{DEPTH - 1} =", "y =")
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[n,{WIDTH}] x) => (float[n,{WIDTH}] y) {{ {body} }}'
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(1)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for layer in range(DEPTH):
        value = known[f"w{layer}"]
        array = rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


if __name__ == "__main__":
    main()
