"""Two INT8 steps in one recipe: the second reads the first one's quantizers, and stacks none on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from passes.quantize.int8 import QuantizeInt8
from passes.target import Target
from tests.support.calibration import Batches
from tests.support.runner import CPU, TENSORRT, context, run, session

HEAD = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4, 8, 8] x) => (float[n, 6] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu(a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    f = Flatten(p)
    [g1] y = Gemm <transB = 1> (f, w2)
}"""
RESIDUAL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu(a)
    [c2] c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    s = Add(c, r)
    t = Relu(s)
    [c3] y = Conv (t, w3)
}"""
CONCAT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu(a)
    [c2] b = Conv <pads = [1, 1, 1, 1]> (x, w2)
    q = Relu(b)
    k = Concat <axis = 1> (r, q)
    [c3] y = Conv (k, w3)
}"""
PRODUCTS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 32] x) => (float[n, 8] y, float[n, 8] z) {
    [m1] y = MatMul(x, w1)
    [m2] z = MatMul(x, w2)
}"""

SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    HEAD: {"w1": (8, 4, 3, 3), "w2": (6, 128)},
    RESIDUAL: {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 1, 1)},
    CONCAT: {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 8, 1, 1)},
    PRODUCTS: {"w1": (32, 8), "w2": (32, 8)},
}

# Eight bits err by 1 to 2 % per layer (test_int8_static.py); three in a row: a factor of 3.
ERROR = 0.06


def build(text: str) -> ir.Model:
    rng = np.random.default_rng(4)
    proto = onnx.parser.parse_model(text)
    for name, shape in SHAPES[text].items():
        array = rng.normal(0, 0.2, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def data(text: str) -> Batches:
    rng = np.random.default_rng(5)
    shape = (64, 32) if text is PRODUCTS else (8, 4, 8, 8)
    return Batches(tuple({"x": rng.normal(0, 1, shape).astype(np.float32)} for _ in range(3)))


def in_steps(text: str, target: Target, *steps: Mapping[str, Any]) -> ir.Model:
    model = build(text)
    for options in steps:
        given = {"activations": "static", "last_layer": "quantize", **options}
        assert QuantizeInt8(**given).apply(model, context(target, calibration=data(text))).rewrites
    return model


def stacked(model: ir.Model) -> list[str]:
    """Quantizers of what has eight bits already, with a scale of their own; and second ones of one value."""
    found, seen = [], set()
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
            continue
        value = node.inputs[0]
        if value in seen:
            found.append(f"{node.name}: a second quantizer")
        seen.add(value)
        maker = value.producer() if value is not None else None
        while maker is not None and maker.op_type in ("Flatten", "MaxPool", "Concat"):
            maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
        moved = maker is not None and maker is not (value.producer() if value is not None else None)
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        if not moved or (node.inputs[1:] != maker.inputs[1:] and "Concat" not in str(value and value.producer())):
            found.append(f"{node.name}: reads {maker.name}")
    return found


def check(model: ir.Model, text: str) -> None:
    """Nothing stands on anything, and the results are the float model's, with ONNX Runtime's optimisation too."""
    assert stacked(model) == []
    feeds = dict(data(text).batches[0])
    expected = run(build(text), feeds)
    fused = session(model, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC).run(list(expected), feeds)
    for (name, exact), optimised in zip(expected.items(), fused, strict=True):
        for got in (run(model, feeds)[name], np.asarray(optimised)):
            lost = np.linalg.norm(got - exact) / np.linalg.norm(exact)
            assert 0 < lost < ERROR


def counted(model: ir.Model, op_types: Sequence[str] = ("QuantizeLinear", "DequantizeLinear")) -> dict[str, int]:
    found = Counter(node.op_type for node in model.graph)
    return {name: found[name] for name in op_types}


CONVOLUTIONS_FIRST = ({"ops": ("Conv",), "calibration": "entropy"}, {"ops": ("MatMul", "Gemm")})


@pytest.mark.parametrize("target", [CPU, TENSORRT], ids=["ONNX Runtime", "TensorRT"])
def test_a_product_behind_pooling_takes_the_convolutions_scale(target: Target) -> None:
    model = in_steps(HEAD, target, *CONVOLUTIONS_FIRST)
    check(model, HEAD)


def test_a_dynamic_product_takes_the_convolutions_scale_too() -> None:
    model = in_steps(HEAD, CPU, {"ops": ("Conv",)}, {"ops": ("Gemm",), "activations": "dynamic"})
    assert not any(node.op_type == "DynamicQuantizeLinear" for node in model.graph)
    check(model, HEAD)


@pytest.mark.parametrize("target", [CPU, TENSORRT], ids=["ONNX Runtime", "TensorRT"])
@pytest.mark.parametrize("first", [["c1"], ["c2"], ["c3"], ["c1", "c3"], ["c2", "c3"]])
def test_a_residual_block_in_two_steps_has_the_pairs_of_one(first: list[str], target: Target) -> None:
    later = [name for name in ("c1", "c2", "c3") if name not in first]
    model = in_steps(RESIDUAL, target, {"skip": tuple(later), "calibration": "mse"}, {})
    check(model, RESIDUAL)
    assert counted(model) == counted(in_steps(RESIDUAL, target, {}))


@pytest.mark.parametrize("first", [["c1"], ["c3"], ["c1", "c2"], ["c2", "c3"]])
def test_concatenated_pairs_keep_their_scales(first: list[str]) -> None:
    later = [name for name in ("c1", "c2", "c3") if name not in first]
    check(in_steps(CONCAT, CPU, {"skip": tuple(later), "calibration": "mse"}, {}), CONCAT)


@pytest.mark.parametrize("target", [CPU, TENSORRT], ids=["ONNX Runtime", "TensorRT"])
def test_two_products_of_one_input_share_its_quantizer(target: Target) -> None:
    model = in_steps(PRODUCTS, target, {"skip": ("m2",), "calibration": "mse"}, {"skip": ("m1",)})
    assert counted(model)["QuantizeLinear"] == 1
    check(model, PRODUCTS)


def test_two_dynamic_products_of_one_input_share_its_range() -> None:
    steps = [{"skip": (name,), "activations": "dynamic"} for name in ("m2", "m1")]
    model = in_steps(PRODUCTS, CPU, *steps)
    assert counted(model, ("DynamicQuantizeLinear", "MatMulIntegerToFloat")) == {
        "DynamicQuantizeLinear": 1,
        "MatMulIntegerToFloat": 2,
    }
    check(model, PRODUCTS)
