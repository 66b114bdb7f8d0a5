"""Calibrated INT8 and 16-bit casts pass TensorRT's parser and builder, and run in the precision they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from passes.cast.bf16 import CastBf16
from passes.cast.fp16 import CastFp16
from passes.quantize.int8 import QuantizeInt8
from tests.support.calibration import Batches, normal
from tests.support.runner import TENSORRT, context

pytestmark = pytest.mark.tensorrt
RNG = np.random.default_rng(3)

MLP = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 64] x) => (float[n, 64] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    y = Gemm <transB=1> (c, w2)
}
"""
CNN = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 16, 8, 8] x) => (float[n, 32, 8, 8] y) {
    a = Conv <pads=[1, 1, 1, 1]> (x, w1, b1)
    r = Relu(a)
    y = Conv(r, w2)
}
"""


def with_weights(text: str, **shapes: tuple[int, ...]) -> ir.Model:
    model = ir.from_onnx_text(text)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in shapes.items():
        value = known[name]
        value.const_value = ir.tensor(RNG.normal(0, 0.2, shape).astype(np.float32), name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        model.graph.register_initializer(value)
    return model


def mlp() -> tuple[ir.Model, Batches]:
    return with_weights(MLP, w1=(64, 64), b1=(64,), w2=(64, 64)), normal((64, 64))


def cnn() -> tuple[ir.Model, Batches]:
    return with_weights(CNN, w1=(32, 16, 3, 3), b1=(32,), w2=(32, 32, 1, 1)), normal((16, 16, 8, 8))


Make = Callable[[], tuple[ir.Model, Batches]]


def built(model: ir.Model, folder: Path) -> Any:
    from tests.support.tensorrt_rtx.building import build

    return build(model, folder).details["counts"]


# The library that builds without a GPU, TensorRT-RTX, has no INT8 convolution (its builder says so); the
# convolution's Q/DQ form is checked against ONNX Runtime in test_int8_static.py.
@pytest.mark.parametrize("options", [{}, {"smooth": 0.5, "rounding": "output", "bias_correction": True}])
def test_int8_matmuls_build_and_run_in_int8(options: dict[str, Any], tmp_path: Path) -> None:
    model, data = mlp()
    result = QuantizeInt8(activations="static", **options).apply(model, context(TENSORRT, calibration=data))
    assert result.rewrites == 2
    assert built(model, tmp_path) == {"matmuls": {"int8": 2}}


def test_int8_of_a_model_cast_to_fp16_builds(tmp_path: Path) -> None:
    model, data = mlp()
    world = context(TENSORRT, calibration=data)
    CastFp16().apply(model, world)
    assert QuantizeInt8(activations="static").apply(model, world).rewrites == 2
    assert built(model, tmp_path) == {"matmuls": {"int8": 2}}


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("cast", [CastFp16, CastBf16])
def test_a_cast_model_builds(make: Make, cast: Any, tmp_path: Path) -> None:
    model, data = make()
    cast().apply(model, context(TENSORRT, calibration=data))
    assert built(model, tmp_path)
