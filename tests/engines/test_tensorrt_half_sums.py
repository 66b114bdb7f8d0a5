"""Models whose FP16 results TensorRT for RTX gets wrong are named when they are built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines import tensorrt_half_sums
from optimize.engines.tensorrt_library import FLAVOURS, Library
from optimize.targets import loading
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int8 import QuantizeInt8
from passes.target import Target
from tests.support.calibration import Batches
from tests.support.graphs import graph
from tests.support.runner import context

PLAIN, RTX = (Library(SimpleNamespace(), flavour, "1.6.1.120") for flavour in FLAVOURS)  # type: ignore[arg-type]
H200 = loading.load("h200", "tensorrt")
PER_CHANNEL = H200.model_copy(update={"quantize": H200.quantize.model_copy(update={"one_scale_in_fp16": {}})})


def layer(op: str, kind: str = "float16") -> tuple[ir.Model, Batches]:
    shape = (8, 8, 1, 1) if op == "Conv" else (8, 8)
    data = f"{kind}[2,8,4,4] x" if op == "Conv" else f"{kind}[2,8] x"
    model = graph(f"y = {op}(x, w)", data, data.replace(" x", " y"))
    (node,) = model.graph
    node.name = "layer"
    weight, dtype = node.inputs[1], model.graph.inputs[0].dtype
    assert weight is not None
    assert dtype is not None
    weight.const_value = ir.tensor(np.random.default_rng(0).normal(size=shape).astype(dtype.numpy()), name="w")
    weight.type, weight.shape = ir.TensorType(dtype), ir.Shape(shape)
    model.graph.register_initializer(weight)
    x = np.ones((2, 8, 4, 4) if op == "Conv" else (2, 8), dtype.numpy())
    return model, Batches(({"x": x},))


def quantized(op: str, form: str, target: Target, kind: str = "float16", **options: object) -> ir.Model:
    model, data = layer(op, kind)
    pass_ = QuantizeFp8(**options) if form == "fp8" else QuantizeInt8(activations="static")  # type: ignore[arg-type]
    assert pass_.apply(model, context(target, calibration=data)).changed == ("layer",)
    return model


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_products_with_scales_per_channel_are_named(op: str, form: str) -> None:
    (note,) = tensorrt_half_sums.notes(RTX, quantized(op, form, PER_CHANNEL))
    assert "overflow to infinity: layer." in note
    assert tensorrt_half_sums.notes(PLAIN, quantized(op, form, PER_CHANNEL)) == []
    assert tensorrt_half_sums.notes(RTX, quantized(op, form, PER_CHANNEL, "float")) == []
    assert tensorrt_half_sums.notes(RTX, quantized(op, form, H200)) == []


def test_a_convolution_in_fp8_is_named_the_other_way_round() -> None:
    (note,) = tensorrt_half_sums.notes(RTX, quantized("Conv", "fp8", H200, weight_scales="tensor"))
    assert "wrong results" in note
    assert tensorrt_half_sums.notes(RTX, quantized("Conv", "fp8", H200)) == []


def test_many_are_counted() -> None:
    model = quantized("MatMul", "int8", PER_CHANNEL)
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    for number in range(6):
        model.graph.append(ir.node("MatMul", list(product.inputs), name=f"more_{number}"))
    (note,) = tensorrt_half_sums.notes(RTX, model)
    assert "layer, more_0, more_1, more_2, more_3 and 2 more." in note


@pytest.mark.tensorrt
def test_the_build_says_so(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    notes = build(quantized("MatMul", "int8", PER_CHANNEL), tmp_path).details["notes"]
    assert any("overflow to infinity" in note for note in notes)
