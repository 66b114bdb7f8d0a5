"""Weights mapped from a file are let go once they are written: a large model must not stay mapped as a whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimize.targets import loading
from passes import registry, saving
from passes.base import PassContext


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize(
    ("name", "options", "target", "engine"),
    [
        ("quantize.int4", {}, "cpu", "onnxruntime"),
        ("quantize.int4", {}, "h200", "tensorrt"),
        ("quantize.int4_planes", {}, "h200", "tensorrt"),
        ("quantize.fp8", {"activations": "none"}, "h200", "tensorrt"),
        ("quantize.fp4", {"activations": "none"}, "b200", "tensorrt"),
    ],
)
def test_no_weight_stays_mapped_after_saving(
    tmp_path: Path, name: str, options: dict[str, Any], target: str, engine: str
) -> None:
    x = ir.val("x", ir.DataType.FLOAT16, ["rows", 64])
    nodes, held = [], []
    for number in range(4):
        numbers = np.random.default_rng(number).normal(size=(64, 64)).astype(np.float16)
        weight = ir.Value(
            name=f"w{number}",
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=ir.Shape((64, 64)),
            const_value=ir.tensor(numbers, name=f"w{number}"),
        )
        held.append(weight)
        nodes.append(ir.node("MatMul", [nodes[-1].outputs[0] if nodes else x, weight], name=f"n{number}"))
    y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["rows", 64])
    graph = ir.Graph([x], [y], nodes=nodes, initializers=held, opset_imports={"": 21}, name="g")
    saving.save(ir.Model(graph, ir_version=10), tmp_path / "in.onnx", inline_bytes=0)
    model = ir.load(tmp_path / "in.onnx")
    result = registry.find(name)(**options).apply(model, PassContext(target=loading.load(target, engine)))
    assert result.rewrites == 4
    saving.save(model, tmp_path / "out.onnx", inline_bytes=0)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert mapped == []
