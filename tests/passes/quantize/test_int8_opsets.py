"""INT8 on models of old opsets: converted to what the quantized operators need, and no further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from passes.base import PassFailed, PassResult
from passes.names import NAME_SCOPES, module_of
from passes.opset import current
from passes.quantize.int8 import QuantizeInt8
from tests.support.calibration import Batches
from tests.support.runner import CPU, TENSORRT, context, run, session

RNG = np.random.default_rng(3)

CNN = """<ir_version: 4, opset_import: ["" : OPSET]>
g (FP[n, 4, 8, 8] x) => (FP[n, 6] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = CLIP
    c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    e = Relu(c)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w3, b3)
}
"""

PERCEPTRON = """<ir_version: 4, opset_import: ["" : OPSET]>
g (float[n, 32] x) => (float[n, 8] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Clip <min = 0.0, max = 6.0> (b)
    y = MatMul(c, w2)
}
"""

# Eight bits err by 1 to 2 % per layer (test_int8_static.py); three in a row: a factor of 3.
ERROR = 0.06


def with_weights(text: str, shapes: Mapping[str, tuple[int, ...]], kind: Any = np.float32) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(0, 0.2, shape).astype(kind), name))
    model = ir.from_proto(proto)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
        node.metadata_props[NAME_SCOPES] = f"['', 'net.{number}', '{node.op_type.lower()}']"
    return model


def cnn(opset: int, fp: str = "float") -> ir.Model:
    clip = "Clip <min = 0.0, max = 6.0> (a)" if opset < 11 else "Relu(a)"
    text = CNN.replace("OPSET", str(opset)).replace("FP", fp).replace("CLIP", clip)
    shapes = {"w1": (16, 4, 3, 3), "b1": (16,), "w2": (8, 16, 3, 3), "w3": (6, 8), "b3": (6,)}
    return with_weights(text, shapes, np.float32 if fp == "float" else np.float16)


def perceptron(opset: int) -> ir.Model:
    text = PERCEPTRON.replace("OPSET", str(opset))
    if opset > 10:
        text = text.replace("Clip <min = 0.0, max = 6.0> (b)", "Relu(b)")
    return with_weights(text, {"w1": (32, 64), "b1": (64,), "w2": (64, 8)})


def images(kind: Any = np.float32) -> Batches:
    return Batches(tuple({"x": RNG.normal(0, 1, (8, 4, 8, 8)).astype(kind)} for _ in range(4)))


def static(model: ir.Model, data: Batches, target: Any = CPU, **options: Any) -> PassResult:
    return QuantizeInt8(activations="static", last_layer="quantize", **options).apply(
        model, context(target, calibration=data)
    )


def error(expected: np.ndarray, got: np.ndarray) -> float:
    expected, got = expected.astype(np.float32), got.astype(np.float32)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def as_ever(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the model gives, the same with ONNX Runtime's basic optimisation."""
    plain = run(model, feeds)["y"]
    fused = session(model, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC).run(["y"], dict(feeds))[0]
    assert error(plain, np.asarray(fused)) < 0.02
    return plain


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
@pytest.mark.parametrize("target", [CPU, TENSORRT], ids=["cpu", "tensorrt"])
def test_convolutions_of_an_old_opset_come_out_at_13(opset: int, target: Any) -> None:
    model, feeds = cnn(opset), images().batches[0]
    expected = run(model, feeds)["y"]
    result = static(model, images(), target)
    assert current(model) == 13
    assert len(result.changed) == 3
    got = as_ever(model, feeds)
    assert 0 < error(expected, got) < ERROR < error(expected, got * 1.1)


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_convolutions_in_fp16_come_out_at_19(opset: int) -> None:
    model, feeds = cnn(opset, "float16"), images(np.float16).batches[0]
    expected = run(model, feeds)["y"]
    result = static(model, images(np.float16))
    assert current(model) == 19
    assert result.rewrites >= 2  # ONNX Runtime's integer matmul takes FLOAT: the Gemm stays
    got = as_ever(model, feeds)
    assert 0 < error(expected, got) < ERROR < error(expected, got * 1.1)


@pytest.mark.parametrize("opset", [9, 11])
def test_dynamic_matrix_layers_come_out_at_11(opset: int) -> None:
    model, feeds = perceptron(opset), {"x": RNG.normal(0, 1, (16, 32)).astype(np.float32)}
    expected = run(model, feeds)["y"]
    result = QuantizeInt8().apply(model, context())
    assert result.rewrites == 2
    assert current(model) == 11
    got = as_ever(model, feeds)
    assert 0 < error(expected, got) < ERROR < error(expected, got * 1.1)


@pytest.mark.parametrize(("opset", "after"), [(9, 10), (10, 10), (12, 12)])
def test_calibrated_integer_layers_come_out_at_10(opset: int, after: int) -> None:
    model = perceptron(opset)
    data = Batches(tuple({"x": RNG.normal(0, 1, (32, 32)).astype(np.float32)} for _ in range(4)))
    feeds = data.batches[0]
    expected = run(model, feeds)["y"]
    static(model, data)
    assert current(model) == after
    assert 0 < error(expected, as_ever(model, feeds)) < ERROR


def test_names_modules_and_biases_survive_the_conversion() -> None:
    model = cnn(9)
    bias, modules = model.graph.initializers["b1"].const_value, [module_of(node) for node in model.graph]
    feeds, inputs, outputs = images().batches[0], list(model.graph.inputs), list(model.graph.outputs)
    result = static(model, images(), TENSORRT, skip=("net.2",))
    assert result.changed == ("net.0", "net.6")
    assert {(skip.node, skip.reason) for skip in result.skips} == {("Conv_2", "listed under skip")}
    assert model.graph.initializers["b1"].const_value is bias
    assert [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert [value.shape for value in model.graph.inputs] == [value.shape for value in inputs]
    assert [value.dtype for value in model.graph.outputs] == [value.dtype for value in outputs]
    by_name = {node.name: module_of(node) for node in model.graph}
    assert set(modules) <= set(by_name.values())
    assert by_name["Conv_0"] == "net.0"
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert run(model, feeds)["y"].shape == (8, 6)


def test_a_model_of_opset_20_keeps_its_graph() -> None:
    model = cnn(20)
    graph = model.graph
    static(model, images())
    assert model.graph is graph
    assert current(model) == 20


def test_a_model_with_nothing_to_quantize_keeps_its_opset() -> None:
    model = cnn(9)
    result = static(model, images(), skip=("*",))
    assert result.rewrites == 0
    assert current(model) == 9


def test_a_second_run_changes_nothing() -> None:
    model = cnn(9)
    static(model, images())
    before = ir.to_proto(model).SerializeToString()
    assert static(model, images()).rewrites == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_a_model_that_cannot_be_converted_is_refused_by_a_sentence() -> None:
    text = CNN.replace("OPSET", "7").replace("FP", "float").replace("r = CLIP", "r = Hardmax <axis = 1> (a)")
    shapes = {"w1": (16, 4, 3, 3), "b1": (16,), "w2": (8, 16, 3, 3), "w3": (6, 8), "b3": (6,)}
    model = with_weights(text, shapes)
    with pytest.raises(PassFailed, match=r"INT8 needs opset 13, this model has 7 .*Hardmax 'Hardmax_1' flattens"):
        static(model, images())
    assert current(model) == 7
