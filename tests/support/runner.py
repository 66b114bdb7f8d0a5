"""A real runner for tests: ONNX Runtime on an `ir.Model`, with graph optimisation off."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from optimize.targets.loading import cpu_instructions, load
from passes.base import Arrays, PassContext
from passes.target import QuantizeRules, Target

IN_MEMORY_BYTES = 1 << 30
"""Above this the model goes through a file: one protobuf message holds at most 2 GiB."""


def session(
    model: ir.Model,
    outputs: Sequence[str] = (),
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    threads: int = 2,
) -> onnxruntime.InferenceSession:
    """Open `model` on the CPU; `outputs` names inner values to expose beside the graph's outputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    weights = [value.const_value for value in model.graph.initializers.values()]
    outside = any(isinstance(weight, ir.ExternalTensor) for weight in weights)
    if not outside and sum(weight.nbytes for weight in weights if weight is not None) < IN_MEMORY_BYTES:
        proto = ir.to_proto(model)
        _expose(proto, outputs)
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        if outputs:
            proto = onnx.load(path, load_external_data=False)
            _expose(proto, outputs)
            onnx.save(proto, path)
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def _expose(proto: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Add untyped graph outputs; ONNX Runtime infers their types."""
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)


def run(model: ir.Model, feeds: Arrays, outputs: Sequence[str] = ()) -> dict[str, np.ndarray[Any, Any]]:
    """Run once; satisfies `passes.base.Runner`."""
    names = list(outputs) or [str(value.name) for value in model.graph.outputs]
    taken = {str(value.name) for value in model.graph.inputs}
    results = session(model, outputs).run(names, {key: feed for key, feed in feeds.items() if key in taken})
    return dict(zip(names, results, strict=True))


CPU = Target(
    name="cpu",
    title="CPU",
    device="cpu",
    dialect="onnxruntime",
    opset=24,
    precisions=("fp32", "int8"),
    attention=("fp32",),
    quantize=load("cpu", "onnxruntime").quantize,
    instructions=cpu_instructions(),
)
"""A target for tests of passes: ONNX Runtime on this machine's CPU. INT8 weights have seven bits where its kernels
saturate with eight, as in a run."""

TENSORRT = Target(
    name="tensorrt",
    title="TensorRT",
    device="cuda",
    dialect="tensorrt",
    opset=24,
    precisions=("fp32", "fp16", "bf16", "fp8", "int8"),
    attention=("fp16", "bf16"),
    quantize=QuantizeRules(residual_adds=("int8", "fp8"), attention_matmuls=("fp8",)),
)
"""A target for tests of passes: TensorRT, with fused attention in 16-bit floating point only."""


def context(target: Target = CPU, **fields: Any) -> PassContext:
    """A context with the real runner."""
    return PassContext(**{"target": target, "run": run, **fields})
