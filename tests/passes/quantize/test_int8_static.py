"""Calibrated INT8: integer matmuls and Q/DQ convolutions on the CPU, symmetric Q/DQ for TensorRT."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from passes.base import PassFailed, PassResult
from passes.quantize.int8 import QuantizeInt8
from passes.target import Target
from tests.support.calibration import Batches, normal
from tests.support.runner import CPU, TENSORRT, context, run, session

RNG = np.random.default_rng(11)

MLP = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 32] x) => (float[n, 8] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    y = Gemm <transB=1> (c, w2)
}
"""

CNN = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
    a = Conv <pads=[1, 1, 1, 1]> (x, w1, b1)
    r = Relu(a)
    d = Conv <pads=[1, 1, 1, 1], group=8> (r, w2)
    q = Relu(d)
    y = Conv <group=2> (q, w3)
}
"""


def with_weights(text: str, **arrays: Any) -> ir.Model:
    model = ir.from_onnx_text(text)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, given in arrays.items():
        array = given if isinstance(given, np.ndarray) else RNG.normal(0, 0.2, given).astype(np.float32)
        value = known[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


def mlp() -> ir.Model:
    return with_weights(MLP, w1=(32, 16), b1=(16,), w2=(8, 16))


def cnn() -> ir.Model:
    return with_weights(CNN, w1=(8, 4, 3, 3), b1=(8,), w2=(8, 1, 3, 3), w3=(8, 4, 1, 1))


def outliers(batches: int = 4) -> Batches:
    """Two of 32 channels 40 times as large as the rest, as in transformers."""
    data = normal((256, 32), batches)
    for batch in data.batches:
        batch["x"][:, [3, 17]] *= 40
    return data


def quantize(model: ir.Model, data: Batches, target: Any = CPU, **options: Any) -> PassResult:
    result = QuantizeInt8(activations="static", **options).apply(model, context(target, calibration=data))
    onnx.checker.check_model(ir.to_proto(model)) if target is TENSORRT else None
    return result


def error(expected: np.ndarray, got: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# A step is 1/255 (uint8) or 1/127 (int8) of a range of some 8 standard deviations; rounding errs by 0.29 steps,
# 1 to 2 % of a standard deviation per operand; three layers in a row and unlucky draws: a factor of 3.
ERROR = 0.06


def test_matrix_layers_become_integer_matmuls_with_constant_scales() -> None:
    model, data = mlp(), normal((256, 32))
    feeds = normal((64, 32), 1, seed=9).batches[0]
    expected = run(model, feeds)["y"]
    quantize(model, data)
    assert Counter(node.op_type for node in model.graph) == {
        "QuantizeLinear": 2,
        "MatMulIntegerToFloat": 2,
        "Relu": 1,
    }
    got = run(model, feeds)["y"]
    assert 0 < error(expected, got) < ERROR < error(expected, got * 1.1)


def test_convolutions_plain_grouped_and_depthwise_become_qdq() -> None:
    model, data = cnn(), normal((16, 4, 8, 8))
    feeds = normal((16, 4, 8, 8), 1, seed=9).batches[0]
    expected = run(model, feeds)["y"]
    result = quantize(model, data, last_layer="quantize")
    assert result.rewrites == 3
    scales = [node.inputs[1].shape for node in model.graph if node.op_type == "DequantizeLinear"]
    assert sorted(len(shape or ()) for shape in scales) == [0, 0, 0, 0, 1, 1, 1]
    got = run(model, feeds)["y"]
    assert 0 < error(expected, got) < ERROR < error(expected, got * 1.1)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (64, 32)), (cnn, (16, 4, 8, 8))])
def test_onnx_runtime_agrees_with_itself_with_its_optimisation_on(make: Any, shape: tuple[int, ...]) -> None:
    model = make()
    feeds = normal(shape, 1, seed=9).batches[0]
    quantize(model, normal(shape))
    plain = run(model, feeds)["y"]
    fused = session(model, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL).run(["y"], feeds)[0]
    # Integer kernels round an intermediate to eight bits where Q/DQ rounds a float: a step here and there.
    assert error(plain, fused) < 0.02


@pytest.mark.parametrize(("make", "shape"), [(mlp, (64, 32)), (cnn, (16, 4, 8, 8))])
def test_tensorrt_gets_symmetric_int8_with_zero_points_of_zero(make: Any, shape: tuple[int, ...]) -> None:
    model = make()
    feeds = normal(shape, 1, seed=9).batches[0]
    expected = run(model, feeds)["y"]
    quantize(model, normal(shape), TENSORRT)
    assert all(node.domain == "" for node in model.graph)
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 2:
            zero = node.inputs[2]
            assert zero is not None
            assert zero.const_value is not None
            assert zero.const_value.numpy().dtype == np.int8
            assert not zero.const_value.numpy().any()
    assert 0 < error(expected, run(model, feeds)["y"]) < ERROR


def test_smoothing_takes_the_outliers_out_of_the_activations() -> None:
    data, feeds = outliers(), outliers(1).batches[0]
    model = mlp()
    expected = run(model, feeds)["y"]
    errors = {}
    for alpha in (None, 0.7):
        candidate = model.clone()
        quantize(candidate, data, smooth=alpha)
        errors[alpha] = error(expected, run(candidate, feeds)["y"])
    assert errors[0.7] < errors[None] / 2, errors


def test_layers_that_share_an_activation_share_its_smoothing() -> None:
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 32] x) => (float[n, 8] y, float[n, 4] z)'
        " { y = MatMul(x, w) z = MatMul(x, v) }",
        w=(32, 8), v=(32, 4),
    )  # fmt: skip
    quantize(model, outliers(), smooth=0.5)
    assert Counter(node.op_type for node in model.graph) == {
        "Mul": 1,
        "QuantizeLinear": 1,
        "MatMulIntegerToFloat": 2,
    }


def test_rounding_by_output_errs_less_than_to_nearest() -> None:
    mixing = RNG.normal(0, 1, (32, 32)).astype(np.float32) / 6
    data = Batches(tuple({"x": batch["x"] @ mixing} for batch in normal((512, 32)).batches))
    feeds = {"x": normal((512, 32), 1, seed=5).batches[0]["x"] @ mixing}
    exact = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 32] x) => (float[n, 64] y) { y = MatMul(x, w) }',
        w=(32, 64),
    )
    expected = run(exact, feeds)["y"]
    errors = {}
    for rounding in ("nearest", "output"):
        candidate = exact.clone()
        # Dynamic activations leave the weights' share of the error visible.
        QuantizeInt8(rounding=rounding).apply(candidate, context(calibration=data))  # type: ignore[arg-type]
        errors[rounding] = error(expected, run(candidate, feeds)["y"])
    assert errors["output"] < errors["nearest"], errors


def test_an_input_whose_squares_overflow_leaves_its_layer_alone_with_the_reason() -> None:
    data = Batches(tuple({"x": batch["x"] * np.float32(1e20)} for batch in normal((64, 32)).batches))
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 32] x) => (float[n, 8] y) { y = MatMul(x, w) }',
        w=(32, 8),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        result = QuantizeInt8(rounding="output").apply(model, context(calibration=data))
    assert result.rewrites == 0
    assert [skip.reason for skip in result.skips] == [
        "squares of its input exceed float32 on the calibration data; take rounding: nearest"
    ]


@pytest.mark.parametrize("target", [CPU, TENSORRT])
def test_bias_correction_removes_the_mean_error(target: Any) -> None:
    data = Batches(tuple({"x": batch["x"] + 2} for batch in normal((512, 32)).batches))
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 32] x) => (float[n, 8] y) { y = MatMul(x, w) }',
        w=(32, 8),
    )
    feeds = {"x": np.concatenate([batch["x"] for batch in data.batches])}
    expected = run(model, feeds)["y"]
    means = {}
    for corrected in (False, True):
        candidate = model.clone()
        quantize(candidate, data, target, bias_correction=corrected)
        means[corrected] = np.abs((run(candidate, feeds)["y"] - expected).mean(axis=0)).max()
    assert means[True] < means[False] / 3, means


@pytest.mark.parametrize("target", [CPU, TENSORRT])
def test_what_is_replaced_goes_from_the_file_too(target: Any) -> None:
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 32] x) => (float[n, 8] y)'
        " { p = MatMul(x, w) y = Add(p, b) }",
        w=(32, 8), b=(8,),
    )  # fmt: skip
    quantize(model, normal((64, 32)), target, bias_correction=True)
    assert [name for name, value in model.graph.initializers.items() if not value.uses()] == []


@pytest.mark.parametrize("target", [CPU, TENSORRT])
def test_a_second_run_changes_nothing(target: Any) -> None:
    for model, data in ((mlp(), normal((64, 32))), (cnn(), normal((16, 4, 8, 8)))):
        quantize(model, data, target)
        before = ir.to_onnx_text(model)
        assert quantize(model, data, target).rewrites == 0
        assert ir.to_onnx_text(model) == before


def test_half_precision_layers_get_scales_of_their_own_type() -> None:
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float16[n, 32] x) => (float16[n, 8] y) { y = MatMul(x, w) }',
        w=RNG.normal(0, 0.2, (32, 8)).astype(np.float16),
    )
    data = Batches(tuple({"x": batch["x"].astype(np.float16)} for batch in normal((64, 32)).batches))
    expected = run(model, data.batches[0])["y"]
    quantize(model, data, TENSORRT)
    assert {node.inputs[1].dtype for node in model.graph if "Linear" in node.op_type} == {ir.DataType.FLOAT16}
    assert error(expected, run(model, data.batches[0])["y"]) < ERROR


def test_static_without_calibration_data_is_refused() -> None:
    with pytest.raises(PassFailed, match="there is no calibration data"):
        QuantizeInt8(activations="static").apply(mlp(), context())


def test_a_dead_layer_stays_in_floating_point_and_is_named() -> None:
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 32] x) => (float[n, 8] y, float[n, 8] z)'
        " { y = MatMul(x, w) d = Sub(x, x) z = MatMul(d, v) }",
        w=(32, 8), v=(32, 8),
    )  # fmt: skip
    result = quantize(model, normal((64, 32)))
    assert result.rewrites == 1
    assert ["never activates" in item.reason for item in result.skips] == [True]


def test_convolutions_are_refused_without_calibration() -> None:
    result = QuantizeInt8().apply(cnn(), context())
    assert {item.reason for item in result.skips} == {"Conv needs calibrated ranges: use `activations: static`"}


def test_tensorrt_refuses_dynamic_activations_before_the_model_is_touched() -> None:
    assert "activations: static" in str(QuantizeInt8().check(TENSORRT))
    assert QuantizeInt8(activations="static").check(TENSORRT) is None
    assert QuantizeInt8(activations="static").requires_calibration()
    assert not QuantizeInt8().requires_calibration()


@pytest.mark.parametrize("target", [CPU, TENSORRT], ids=["ONNX Runtime", "TensorRT"])
def test_a_second_step_reads_the_pairs_of_the_first(target: Target) -> None:
    model, whole = cnn(), cnn()
    batches = normal((4, 4, 8, 8))
    options: dict[str, Any] = {"activations": "static", "last_layer": "quantize"}
    for place, node in enumerate(model.graph):
        node.name = f"n{place}"
    expected = run(model, dict(batches.batches[0]))["y"]
    for skip in (["n2", "n4"], ["n4"], []):
        QuantizeInt8(skip=tuple(skip), **options).apply(model, context(target, calibration=batches))
    QuantizeInt8(**options).apply(whole, context(target, calibration=batches))
    for quantize in (node for node in model.graph if node.op_type == "QuantizeLinear"):
        producer = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
        assert producer is None or producer.op_type != "DequantizeLinear"
    assert Counter(node.op_type for node in model.graph) == Counter(node.op_type for node in whole.graph)
    got = run(model, dict(batches.batches[0]))["y"]
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
