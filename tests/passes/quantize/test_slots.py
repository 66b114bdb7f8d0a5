"""Pairs on skip connections and inside attention, where the target's rules and the options ask for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic
import pytest

from optimize.targets import loading
from passes import numerics
from passes.base import Pass
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int8 import QuantizeInt8
from passes.target import QuantizeRules
from tests.support.calibration import Batches, normal
from tests.support.graphs import graph
from tests.support.runner import TENSORRT, context, run

RNG = np.random.default_rng(4)
SHAPE = (4, 16, 6, 6)
IMAGES = normal(SHAPE)
DATA, RESULT = "float[N,16,6,6] x", "float[N,16,6,6] y"
BLOCK = "a = Conv(x, w) y = Add(x, a)"
SHORTCUT = "r = Relu(x) a = Conv(r, w) b = Conv(x, v) s = Add(a, b) y = Relu(s)"
OTHERS = {
    "itself": "a = Conv(x, w) y = Add(a, a)",
    "read twice": "a = Conv(x, w) b = Relu(a) c = Add(b, a) y = Add(c, x)",
    "no sum": "a = Conv(x, w) y = Mul(a, x)",
}

ATTENTION = (
    "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) h = Mul(s, quarter) m = Add(h, bias) p = Softmax(m)"
    " c = Cast<to=1>(p) y = MatMul(c, v)"
)
HEADS = {"q": (2, 6, 16), "k": (2, 7, 16), "v": (2, 7, 16)}


def network(body: str = BLOCK) -> ir.Model:
    return with_weights(graph(body, DATA, RESULT), w=(16, 16, 1, 1), v=(16, 16, 1, 1))


def attention(body: str = ATTENTION) -> ir.Model:
    inputs = "float[2,6,16] q, float[2,7,16] k, float[2,7,16] v"
    weights = "float one = {1.0}, float quarter = {0.25}, float[1,1,7] bias = {0,0,0,0,0,0,-30}"
    model = graph(body, inputs, "float[2,6,16] y", weights, opset=23)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
    return model


def tokens() -> Batches:
    return Batches(tuple({name: held(*shape) for name, shape in HEADS.items()} for _ in range(2)))


def held(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def with_weights(model: ir.Model, kind: ir.DataType = ir.DataType.FLOAT, **shapes: tuple[int, ...]) -> ir.Model:
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in shapes.items():
        if name in known:
            value = known[name]
            value.const_value = ir.tensor(held(*shape).astype(kind.numpy()), name=name)
            value.type, value.shape = ir.TensorType(kind), ir.Shape(shape)
            model.graph.register_initializer(value)
    return model


def pairs(model: ir.Model, op_type: str) -> list[tuple[bool, ...]]:
    """For each node of the type, in order, which of its inputs a DequantizeLinear makes."""
    return [
        tuple(_made_by_dequantize(value) for value in node.inputs)
        for node in model.graph
        if node.op_type == op_type
    ]


def _made_by_dequantize(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


FORMATS: dict[str, Callable[..., Pass]] = {
    "fp8": QuantizeFp8, "int8": lambda **options: QuantizeInt8(activations="static", **options),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_added_to_a_convolution_goes_through_the_pair_that_the_convolution_reads(name: str) -> None:
    model = network()
    result = FORMATS[name]().apply(model, context(TENSORRT, calibration=IMAGES))
    assert {item.name: item.found for item in result.patterns}["skip connection"] == 1
    assert pairs(model, "Add") == [(True, False)]
    (add,) = (node for node in model.graph if node.op_type == "Add")
    (conv,) = (node for node in model.graph if node.op_type == "Conv")
    assert add.inputs[0] is conv.inputs[0]

    x = held(*SHAPE)
    given = run(model, {"x": x}, ["y", "a"])
    grid = numerics.FP8_E4M3 if name == "fp8" else numerics.INT8
    amax = max(float(np.abs(batch["x"]).max()) for batch in IMAGES.batches)
    step = numerics.symmetric_scale(np.asarray(amax), grid)
    expected = numerics.dequantize(numerics.quantize(x, step, grid), step)
    np.testing.assert_allclose(given["y"] - given["a"], expected, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_of_a_shortcut_with_its_own_convolution_the_second_is_meant(name: str) -> None:
    model = network(SHORTCUT)
    FORMATS[name]().apply(model, context(TENSORRT, calibration=IMAGES))
    assert pairs(model, "Add") == [(False, True)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_other_sums_stay_in_floating_point(name: str, body: str) -> None:
    model = network(body)
    FORMATS[name]().apply(model, context(TENSORRT, calibration=IMAGES))
    assert not any(any(found) for op_type in ("Add", "Mul") for found in pairs(model, op_type))


@pytest.mark.parametrize("name", FORMATS)
def test_a_skip_connection_can_be_skipped_and_a_dead_one_is_named(name: str) -> None:
    model = network()
    FORMATS[name](skip=("Add",)).apply(model, context(TENSORRT, calibration=IMAGES))
    assert pairs(model, "Add") == [(False, False)]

    dead = network("z = Sub(x, x) a = Conv(x, w) y = Add(a, z)")
    result = FORMATS[name]().apply(dead, context(TENSORRT, calibration=IMAGES))
    assert pairs(dead, "Add") == [(False, False)]
    assert any("'z'" in skip.reason for skip in result.skips)


@pytest.mark.parametrize("name", FORMATS)
def test_beside_a_convolution_that_stays_nothing_is_added_however_often(name: str) -> None:
    model = network("z = Sub(x, x) a = Conv(z, w) y = Add(a, x)")
    for _ in range(2):
        FORMATS[name]().apply(model, context(TENSORRT, calibration=IMAGES))
        assert pairs(model, "Add") == [(False, False)]

    quantized = network()
    FORMATS[name]().apply(quantized, context(TENSORRT, calibration=IMAGES))
    before = ir.to_onnx_text(quantized)
    FORMATS[name]().apply(quantized, context(TENSORRT, calibration=IMAGES))
    assert ir.to_onnx_text(quantized) == before


@pytest.mark.parametrize("calibration", ["minmax", "mse"])
def test_smoothing_for_a_matrix_layer_leaves_a_skip_connections_range_whole(calibration: str) -> None:
    images = Batches(
        tuple({"x": batch["x"] * np.array([1.0] * 5 + [60.0], np.float32)} for batch in IMAGES.batches)
    )
    model = with_weights(
        graph("r = Relu(x) a = Conv(r, w) m = MatMul(x, u) y = Add(x, a)", DATA, f"{RESULT}, float[N,16,6,4] m"),
        w=(16, 16, 1, 1), u=(6, 4),
    )  # fmt: skip
    quantize = QuantizeInt8(activations="static", smooth=0.8, calibration=calibration)  # type: ignore[arg-type]
    quantize.apply(model, context(TENSORRT, calibration=images))
    assert pairs(model, "Add") == [(True, False)]
    feeds = images.batches[0]
    given = run(model, feeds, ["y", "a"])
    error = np.linalg.norm(given["y"] - given["a"] - feeds["x"]) / np.linalg.norm(feeds["x"])
    assert error < 0.05


def test_a_layer_behind_one_that_got_a_bias_is_still_known() -> None:
    model = with_weights(
        graph("r = Relu(x) m = MatMul(r, u) a = Conv(x, w) s = Add(a, m) y = MatMul(s, u)", DATA, RESULT),
        w=(16, 16, 1, 1), u=(6, 6),
    )  # fmt: skip
    quantize = QuantizeInt8(activations="static", bias_correction=True)
    result = quantize.apply(model, context(TENSORRT, calibration=IMAGES))
    assert result.rewrites == 4
    assert (False, True) in pairs(model, "Add")


@pytest.mark.parametrize("name", FORMATS)
def test_a_pair_in_half_precision_has_scales_of_the_convolutions_type(name: str) -> None:
    model = with_weights(
        graph("a = Conv(x, w) r = Relu(x) y = Add(r, a)",
              DATA.replace("float", "float16"), RESULT.replace("float", "float16")),
        ir.DataType.FLOAT16, w=(16, 16, 1, 1),
    )  # fmt: skip
    images = Batches(tuple({"x": batch["x"].astype(np.float16)} for batch in IMAGES.batches))
    FORMATS[name]().apply(model, context(TENSORRT, calibration=images))
    assert pairs(model, "Add") == [(True, False)]
    scales = [node.inputs[1] for node in model.graph if node.op_type == "QuantizeLinear"]
    assert {scale.dtype for scale in scales if scale is not None} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("name", FORMATS)
def test_a_target_without_the_rule_gets_no_pair_there(name: str) -> None:
    model = network()
    bare = TENSORRT.model_copy(update={"quantize": QuantizeRules()})
    FORMATS[name]().apply(model, context(bare, calibration=IMAGES))
    assert pairs(model, "Add") == [(False, False)]


def test_both_products_of_attention_take_fp8_where_asked() -> None:
    model, exact = attention(), attention()
    result = QuantizeFp8(attention=True).apply(model, context(TENSORRT, calibration=tokens()))
    assert {item.name: item.found for item in result.patterns} == {
        "fp8": 0, "skip connection": 0, "attention input": 4,
    }  # fmt: skip
    assert set(result.changed) == {node.name for node in model.graph if node.op_type == "MatMul"}
    assert result.skips == ()
    assert pairs(model, "MatMul") == [(True, True), (True, True)]
    feeds = next(iter(tokens().feeds()))
    got, wanted = run(model, feeds)["y"], run(exact, feeds)["y"]
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-3 < error < 0.05

    untouched = attention()
    QuantizeFp8().apply(untouched, context(TENSORRT, calibration=tokens()))
    assert pairs(untouched, "MatMul") == [(False, False), (False, False)]


def test_attention_is_left_where_it_cannot_be_had_and_the_report_says_why() -> None:
    named = QuantizeFp8(attention=True, skip=("Softmax",)).apply(
        model := attention(), context(TENSORRT, calibration=tokens())
    )
    assert pairs(model, "MatMul") == [(False, False), (False, False)]
    assert "named under skip" in {skip.reason for skip in named.skips}

    fused = attention("y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)")
    result = QuantizeFp8(attention=True).apply(fused, context(TENSORRT, calibration=tokens()))
    assert result.rewrites == 0
    assert any("before fuse.attention" in skip.reason for skip in result.skips)


ODD = {
    "two softmaxes over one product": (
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) n = Mul(s, quarter) o = Softmax(n)"
        " a = MatMul(p, v) b = MatMul(o, v) y = Add(a, b)",
        [(True, True)] * 3,
    ),
    "one softmax, two products": (
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) a = MatMul(p, v)"
        " b = MatMul(p, k) y = Add(a, b)",
        [(True, True)] * 3,
    ),
    "a layer's own softmax": (
        "t = Transpose<perm=[1,0]>(w) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)",
        [(True, False), (False, False)],
    ),
    "read in a branch": (
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) c = Cast<to=9>(one)"
        " y = If(c) <then_branch = g () => (float[2,6,16] u) { u = MatMul(p, v) },"
        " else_branch = h () => (float[2,6,16] z) { z = Identity(q) }>",
        [(False, False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), ODD.values(), ids=ODD)
def test_unusual_attention(body: str, expected: list[tuple[bool, ...]]) -> None:
    model = with_weights(attention(body), w=(7, 16))
    world = context(TENSORRT, calibration=tokens())
    for _ in range(2):
        QuantizeFp8(attention=True).apply(model, world)
        assert pairs(model, "MatMul") == expected


def test_attention_in_fp8_needs_a_target_that_takes_it_and_calibrated_activations() -> None:
    quantize = QuantizeFp8(attention=True)
    assert quantize.check(loading.load("h200", "tensorrt")) is None
    without = TENSORRT.model_copy(
        update={"quantize": TENSORRT.quantize.model_copy(update={"attention_matmuls": ()})}
    )
    assert "leave out `attention`" in str(quantize.check(without))
    with pytest.raises(pydantic.ValidationError, match="activations: static"):
        QuantizeFp8(attention=True, activations="none")


@pytest.mark.tensorrt
def test_attention_in_fp8_builds_and_its_products_run_in_fp8(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    model = attention()
    QuantizeFp8(attention=True).apply(model, context(TENSORRT, calibration=tokens()))
    assert build(model, tmp_path).details["counts"] == {"matmuls": {"fp8": 2}}


@pytest.mark.tensorrt
@pytest.mark.parametrize(("body", "convolutions"), [(BLOCK, 1), (SHORTCUT, 2)], ids=["plain", "shortcut"])
def test_skip_connections_in_fp8_build(body: str, convolutions: int, tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    model = network(body)
    QuantizeFp8().apply(model, context(TENSORRT, calibration=IMAGES))
    details = build(model, tmp_path).details
    assert details["counts"] == {"convolutions": {"fp8": convolutions}}
    if body == BLOCK:  # the addition reads the 8-bit copy, a quarter of the bytes
        (addition,) = (layer for layer in details["layers"] if "node_of_y" in layer["nodes"])
        assert "fp8" in {each["dtype"] for each in addition["inputs"]}
