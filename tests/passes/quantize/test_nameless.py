"""Layers of files without node names are told apart in reports, by what `skip` takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimize.targets.loading import load
from passes import registry
from passes.base import PassResult
from tests.support.calibration import Batches
from tests.support.runner import CPU, TENSORRT, context

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 32] x) => (float[n, 32] y) {
        h = MatMul(x, w)
        r = Relu(h)
        t = Transpose(r)
        m = MatMul(r, t)
        s = MatMul(m, r)
        y = MatMul(s, v)
    }"""
BATCH = {"x": np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)}


def apply(name: str, **options: Any) -> PassResult:
    made = ir.from_onnx_text(TEXT)
    known = {value.name: value for node in made.graph for value in node.inputs if value is not None}
    for weight in ("w", "v"):
        numbers = np.random.default_rng(2).normal(0, 0.2, (32, 32)).astype(np.float32)
        known[weight].const_value = ir.tensor(numbers, name=weight)
        known[weight].type, known[weight].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((32, 32))
        made.graph.register_initializer(known[weight])
    target = load("b200", "tensorrt") if name == "quantize.fp4" else TENSORRT if name == "quantize.fp8" else CPU
    return registry.find(name)(**options).apply(made, context(target, calibration=Batches((BATCH,))))


PASSES = {
    "quantize.int8": {},
    "quantize.int8 static": {"activations": "static"},
    "quantize.int8_blocks": {},
    "quantize.int4": {},
    "quantize.int4_planes": {"block_size": 32},
    "quantize.fp8": {},
    "quantize.fp4": {},
}


@pytest.mark.parametrize("name", PASSES)
def test_every_nameless_layer_has_a_name_that_skip_takes(name: str) -> None:
    options = PASSES[name]
    name = name.partition(" ")[0]
    result = apply(name, **options)
    assert result.changed == ("output:h", "output:y")
    assert {skip.node for skip in result.skips} == {"output:m", "output:s"}
    without = apply(name, **options, skip=(result.changed[0],))
    assert without.changed == ("output:y",)
    assert {skip.node for skip in without.skips} == {"output:h", "output:m", "output:s"}
