"""Matrix products in 16 bits for TensorRT: one scale a weight, so that no unscaled sum has to fit into FP16."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic
import pytest

from optimize.targets import loading
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int8 import QuantizeInt8
from passes.target import Target
from tests.support.calibration import Batches, normal
from tests.support.graphs import graph
from tests.support.runner import TENSORRT, context, run

RNG = np.random.default_rng(4)


def held(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def quantize(model: ir.Model, target: Target, data: Batches) -> None:
    QuantizeInt8(activations="static").apply(model, context(target, calibration=data))


def without(target: Target, **rules: Any) -> Target:
    return target.model_copy(update={"quantize": target.quantize.model_copy(update=rules)})


def half(op: str) -> tuple[ir.Model, Batches]:
    """A layer in FP16 with columns of very different size, one of them zero."""
    shape = (6, 32) if op == "Gemm" else (32, 6)
    stored = held(*shape)
    columns = stored if op == "Gemm" else stored.T
    columns *= np.array([1, 0.1, 0, 0.01, 2, 0.5], np.float32)[:, None]
    body = (
        "p = Gemm<transB=1>(x, w, b) y = Relu(p)" if op == "Gemm" else "m = MatMul(x, w) p = Add(m, b) y = Relu(p)"
    )
    model = graph(body, "float16[4,32] x", "float16[4,6] y")
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in {"w": stored, "b": held(6)}.items():
        known[name].const_value = ir.tensor(array.astype(np.float16), name=name)
        known[name].type, known[name].shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(array.shape)
        model.graph.register_initializer(known[name])
    data = normal((4, 32), batches=2)
    return model, Batches(tuple({"x": batch["x"].astype(np.float16)} for batch in data.batches))


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_int8_in_fp16_multiplies_the_channels_factors_behind_the_product(op: str) -> None:
    model, data = half(op)
    plain = model.clone()
    quantize(model, loading.load("h200", "tensorrt"), data)
    quantize(plain, without(loading.load("h200", "tensorrt"), one_scale_in_fp16={}), data)
    x = data.batches[0]
    got, wanted = run(model, x)["y"].astype(np.float32), run(plain, x)["y"].astype(np.float32)
    np.testing.assert_allclose(got, wanted, atol=2e-3 * float(np.abs(wanted).max()))
    scales = [node.inputs[1] for node in model.graph if node.op_type == "DequantizeLinear"]
    assert all(scale is not None and scale.shape is not None and scale.shape.rank() == 0 for scale in scales)
    chain = [node.op_type for node in model.graph if node.op_type in (op, "Mul", "Add", "Relu")]
    assert chain == [op, "Mul", "Add", "Relu"]
    (factors,) = (node.inputs[1] for node in model.graph if node.op_type == "Mul")
    assert factors is not None
    assert factors.const_value is not None
    numbers = factors.const_value.numpy().astype(np.float64)
    assert numbers.max() * numbers.min() == pytest.approx(1, rel=0.01)  # the common scale lies in the middle
    before = ir.to_onnx_text(model)
    quantize(model, loading.load("h200", "tensorrt"), data)
    assert ir.to_onnx_text(model) == before


def test_int8_in_fp32_keeps_its_scales_per_channel() -> None:
    wide, data = half("MatMul")
    for value in wide.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in (*wide.graph.inputs, *wide.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    quantize(
        wide,
        loading.load("h200", "tensorrt"),
        Batches(tuple({"x": b["x"].astype(np.float32)} for b in data.batches)),
    )
    assert "Mul" not in [node.op_type for node in wide.graph]


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_fp8_in_fp16_has_one_scale_a_weight_unless_told_otherwise(op: str) -> None:
    h200 = loading.load("h200", "tensorrt")
    for options, rank in (({}, 0), ({"weight_scales": "channel"}, 1)):
        model, data = half(op)
        exact = model.clone()
        QuantizeFp8(**options).apply(model, context(h200, calibration=data))  # type: ignore[arg-type]
        scales = [node.inputs[1] for node in model.graph if node.op_type == "DequantizeLinear"]
        assert sorted(scale.shape.rank() for scale in scales if scale is not None and scale.shape is not None) == [
            0,
            rank,
        ]
        x = data.batches[0]
        got, wanted = run(model, x)["y"].astype(np.float32), run(exact, x)["y"].astype(np.float32)
        assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.06


def test_blocks_have_scales_of_their_own() -> None:
    with pytest.raises(pydantic.ValidationError, match="weights without blocks"):
        QuantizeFp8(activations="none", block_size=32, weight_scales="tensor")


@pytest.mark.parametrize("rounding", ["nearest", "output"])
def test_fp8_with_one_scale_stores_what_the_pass_rounded(rounding: str) -> None:
    model, data = half("MatMul")
    (weight,) = (value for name, value in model.graph.initializers.items() if name == "w")
    assert weight.const_value is not None
    exact = weight.const_value.numpy().astype(np.float32)
    QuantizeFp8(weight_scales="tensor", rounding=rounding).apply(model, context(TENSORRT, calibration=data))  # type: ignore[arg-type]
    (codes,) = (value for value in model.graph.initializers.values() if value.shape == (32, 6))
    (node,) = (node for node, _ in codes.uses())
    scale = node.inputs[1]
    assert codes.const_value is not None
    assert scale is not None
    assert scale.const_value is not None
    stored = codes.const_value.numpy().astype(np.float32) * scale.const_value.numpy().astype(np.float32)
    assert np.abs(stored).max() == pytest.approx(np.abs(exact).max(), rel=1e-3)
    assert np.linalg.norm(stored - exact) / np.linalg.norm(exact) < 0.06


@pytest.mark.parametrize(
    ("options", "advice"),
    [({}, "set weight_scales: tensor$"), ({"activations": "none"}, "set weight_scales: tensor, or a block_size$")],
)
@pytest.mark.parametrize("rounding", ["nearest", "output"])
def test_fp8_takes_a_stack_of_weights_with_one_scale_alone(
    rounding: str, options: dict[str, Any], advice: str
) -> None:
    weight = held(3, 32, 6)
    model = graph("y = MatMul(x, w)", "float[3,4,32] x", "float[3,4,6] y")
    held_by = next(iter(model.graph)).inputs[1]
    assert held_by is not None
    held_by.const_value = ir.tensor(weight, name="w")
    held_by.type, held_by.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
    model.graph.register_initializer(held_by)
    exact, data = model.clone(), normal((3, 4, 32), batches=2)
    refused = QuantizeFp8(rounding=rounding, **options).apply(model, context(TENSORRT, calibration=data))
    assert refused.patterns[0].found == 0
    assert re.search(advice, refused.skips[0].reason)
    taken = QuantizeFp8(rounding=rounding, weight_scales="tensor", **options)
    assert taken.apply(model, context(TENSORRT, calibration=data)).patterns[0].found == 1
    (codes,) = (value for value in model.graph.initializers.values() if value.shape == (3, 32, 6))
    ((node, _),) = codes.uses()
    scale = node.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    assert float(scale.const_value.numpy()) == pytest.approx(np.abs(weight).max() / 448, rel=1e-6)
    x = data.batches[0]
    got, wanted = run(model, x)["y"], run(exact, x)["y"]
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.06  # two roundings to 3 bits of mantissa


@pytest.mark.tensorrt
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_layers_in_16_bits_build_and_their_products_run_in_8(op: str, form: str, tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    model, data = half(op)
    made = QuantizeFp8() if form == "fp8" else QuantizeInt8(activations="static")
    made.apply(model, context(loading.load("h200", "tensorrt"), calibration=data))
    assert build(model, tmp_path).details["counts"] == {"matmuls": {form: 1}}
