"""Pairs behind convolutions, in front of what moves values, and at the edges, by the target's rules."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from optimize.targets import loading
from passes.base import PassResult
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int8 import QuantizeInt8
from passes.target import Target
from tests.support.calibration import Batches, normal
from tests.support.graphs import graph
from tests.support.runner import CPU, TENSORRT, context, run

RNG = np.random.default_rng(4)
SHAPE = (2, 16, 8, 8)
IMAGES = normal(SHAPE)
DATA = "float[2,16,8,8] x"
CONSTANTS = "int64[1] eight = {8}, float[4] twice = {1, 1, 2, 2}"
RESIDUAL = "a = Conv(x, w) ra = Relu(a) b = Conv(ra, v) s = Add(b, x) rs = Relu(s) y = Conv(rs, w)"
JOINED = (
    "a = Conv(x, w) ra = Relu(a) b = Conv(x, v) p = MaxPool<kernel_shape=[1,1]>(b) c = Concat<axis=1>(ra, p)"
    " d = Conv(c, u) y = Conv(d, k)"
)
RESIZED = "a = Conv(x, w) r = Resize(a, , twice) b = Conv(r, v) y = Conv(b, w)"
OUTPUTS = {RESIZED: "float[2,16,16,16] y"}
SIZES = {"w": (16, 16, 1, 1), "v": (16, 16, 1, 1), "u": (16, 32, 1, 1), "k": (16, 16, 1, 1)}


def held(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def network(body: str, output: str | None = None) -> ir.Model:
    model = graph(body, DATA, output or OUTPUTS.get(body, "float[2,16,8,8] y"), CONSTANTS)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in SIZES.items():
        if name in known:
            known[name].const_value = ir.tensor(held(*shape), name=name)
            known[name].type, known[name].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
            model.graph.register_initializer(known[name])
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{number}"
    return model


def quantize(model: ir.Model, target: Target = CPU, data: Batches = IMAGES, **options: Any) -> PassResult:
    return QuantizeInt8(activations="static", **options).apply(model, context(target, calibration=data))


def found(result: PassResult) -> dict[str, int]:
    return {pattern.name: pattern.found for pattern in result.patterns}


def without(target: Target, **rules: Any) -> Target:
    return target.model_copy(update={"quantize": target.quantize.model_copy(update=rules)})


def as_run(model: ir.Model, folder: Path) -> collections.Counter[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (RESIDUAL, {"QLinearConv": 3, "QLinearAdd": 1}),
        (JOINED, {"QLinearConv": 4, "QLinearConcat": 1}),
        (RESIZED, {"QLinearConv": 3, "Resize": 1}),
    ],
    ids=["residual", "joined", "resized"],
)
def test_onnx_runtime_runs_every_convolution_and_what_joins_them_in_integers(
    body: str, expected: dict[str, int], tmp_path: Path
) -> None:
    model, exact = network(body), network(body)
    for name, value in exact.graph.initializers.items():
        value.const_value = model.graph.initializers[name].const_value
    quantize(model, last_layer="quantize")
    ran = as_run(model, tmp_path)
    assert {name: ran[name] for name in expected} == expected
    assert not {"Conv", "FusedConv", "NhwcFusedConv", "Add", "Concat"} & set(ran)
    x = IMAGES.batches[0]
    got, wanted = run(model, x)["y"], run(exact, x)["y"]
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.05


def test_without_the_rules_onnx_runtime_multiplies_in_floating_point(tmp_path: Path) -> None:
    model = network(RESIDUAL)
    bare = without(CPU, convolution_results=(), residual_adds=())
    quantize(model, bare, last_layer="quantize")
    ran = as_run(model, tmp_path)
    assert ran["QLinearConv"] == 1
    assert ran["Conv"] + ran["FusedConv"] == 2


@pytest.mark.parametrize("body", [JOINED, RESIZED], ids=["joined", "resized"])
def test_pairs_repeated_in_front_change_no_number(body: str) -> None:
    with_them, rules = network(body), without(CPU, convolution_results=())
    bare = with_them.clone()
    moved = found(quantize(with_them, rules))["moved in 8 bits"]
    assert moved == (2 if body == JOINED else 1)
    assert found(quantize(bare, without(rules, repeat_before={})))["moved in 8 bits"] == 0
    x = IMAGES.batches[1]
    np.testing.assert_array_equal(run(with_them, x)["y"], run(bare, x)["y"])


STAY = {
    "read by another": "a = Conv(x, w) c = Concat<axis=1>(a, x) d = Conv(c, u) m = Mul(c, c) e = Conv(m, u)"
    " s = Add(d, e) y = Conv(s, w)",
    "interpolating": "a = Conv(x, w) r = Resize<mode=\"linear\">(a, , twice) b = Conv(r, v)"
    " q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b) rq = Relu(q) y = Conv(rq, w)",
    "two results": "p, i = MaxPool<kernel_shape=[1,1]>(x) f = Cast<to=1>(i) a = Conv(p, w) z = Mul(f, a)"
    " y = Conv(z, w)",
}  # fmt: skip


@pytest.mark.parametrize("body", STAY.values(), ids=STAY)
def test_operators_that_others_read_or_that_make_new_values_get_no_pair_in_front(body: str) -> None:
    model = network(body)
    quantize(model, without(CPU, convolution_results=()))
    fed = {
        node.op_type: [value.producer().op_type for value in node.inputs if value and value.producer()]  # type: ignore[union-attr]
        for node in model.graph
        if node.op_type in ("Concat", "Resize", "MaxPool")
    }
    kept = {"read by another": "Concat", "interpolating": "Resize", "two results": "MaxPool"}
    name = kept[next(key for key, value in STAY.items() if value == body)]
    assert "DequantizeLinear" not in fed[name]


@pytest.mark.parametrize("body", [RESIDUAL, JOINED, RESIZED], ids=["residual", "joined", "resized"])
def test_a_second_run_changes_nothing(body: str) -> None:
    model = network(body)
    quantize(model)
    before = ir.to_onnx_text(model)
    assert quantize(model).rewrites == 0
    assert ir.to_onnx_text(model) == before


def test_a_convolutions_result_that_many_read_is_quantized_once_for_all(tmp_path: Path) -> None:
    model = network(
        "a = Conv(x, w) r = Relu(a) g = Sigmoid(r) m = Mul(r, g) b = Conv(r, v) s = Add(m, b) y = Conv(s, w)"
    )
    quantize(model)
    (relu,) = (node for node in model.graph if node.op_type == "Relu")
    assert [node.op_type for node, _ in relu.outputs[0].uses()] == ["QuantizeLinear"]
    assert as_run(model, tmp_path)["QLinearConv"] == 2  # the last stays


def test_the_last_convolution_stays_unless_asked_and_then_gives_its_name_to_the_pair() -> None:
    model = network(RESIDUAL)
    result = quantize(model)
    assert [skip.reason for skip in result.skips] == [
        "the model's last layer, kept on this target unless `last_layer: quantize`"
    ]
    assert model.graph.outputs[0].producer().op_type == "Conv"  # type: ignore[union-attr]

    whole = network(RESIDUAL)
    assert quantize(whole, last_layer="quantize").skips == ()
    (output,) = whole.graph.outputs
    assert (output.name, output.producer().op_type) == ("y", "DequantizeLinear")  # type: ignore[union-attr]


EDGES = (
    "h = Relu(x) a = Conv(h, w) b = Conv(x, v) s = Add(a, b) t = Concat<axis=1>(s, x) d = Conv(t, u) e = Relu(d)"
    " y = Identity(e)"
)


@pytest.mark.parametrize("pass_", [QuantizeInt8, QuantizeFp8])
def test_first_and_last_are_by_what_flows_between(pass_: Any) -> None:
    options = {"activations": "static", "first_layer": "keep", "last_layer": "keep"}
    result = pass_(**options).apply(network(EDGES), context(TENSORRT, calibration=IMAGES))
    assert {(skip.node, skip.reason) for skip in result.skips} == {
        ("Conv_1", "the model's first layer: `first_layer: keep`"),
        ("Conv_2", "the model's first layer: `first_layer: keep`"),
        ("Conv_5", "the model's last layer: `last_layer: keep`"),
    }
    every = pass_(activations="static", first_layer="quantize", last_layer="quantize")
    assert len(every.apply(network(EDGES), context(TENSORRT, calibration=IMAGES)).changed) == 3


def test_a_model_that_reads_whole_numbers_has_no_first_layer() -> None:
    model = graph("e = Gather(table, i) y = MatMul(e, w)", "int64[4] i", "float[4,8] y", "float[3,8] table = {0}")
    (matmul,) = (node for node in model.graph if node.op_type == "MatMul")
    from passes.quantize._edges import at_edges

    found_ = at_edges(model, [matmul], TENSORRT, "fp8", first="keep", last="quantize")
    assert found_ == {}


def test_a_layer_before_a_branch_is_not_the_last() -> None:
    model = network(
        "a = Conv(x, w) b = ReduceMax<keepdims=0>(a) c = Cast<to=9>(b)"
        " y = If(c) <then_branch = g () => (float[2,16,8,8] k) { k = Relu(a) },"
        " else_branch = h () => (float[2,16,8,8] z) { z = Relu(x) }>"
    )
    assert [skip.reason for skip in quantize(model, last_layer="keep").skips] == []


def test_a_result_that_never_activates_is_named_and_the_convolution_says_how_it_runs() -> None:
    dead = network("a = Conv(x, w) low = Constant<value_float=0.0>() high = Constant<value_float=0.0>()"
                   " r = Clip(a, low, high) s = Add(r, x) d = Conv(s, v) y = Conv(d, w)")  # fmt: skip
    reasons = [skip.reason for skip in quantize(dead).skips]
    assert any(reason.startswith("its result 'r' ") and reason.endswith("floating point") for reason in reasons)


def test_tensorrt_gets_no_pair_behind_a_convolution() -> None:
    model = network(JOINED)
    for target in ("h200", "a100"):
        copy = model.clone()
        assert found(quantize(copy, loading.load(target, "tensorrt")))["moved in 8 bits"] == 0
        convolutions = [node for node in copy.graph if node.op_type == "Conv"]
        behind = [node.op_type for conv in convolutions[:2] for node, _ in conv.outputs[0].uses()]
        assert "QuantizeLinear" not in behind


def test_fp8_leaves_operators_that_the_rules_do_not_name_unless_they_are_asked_for() -> None:
    products = without(TENSORRT, ops={"fp8": ("MatMul", "Gemm")}, keep_first={"fp8": ("Conv",)})
    result = QuantizeFp8().apply(network(JOINED), context(products, calibration=IMAGES))
    assert result.changed == ()
    assert {skip.reason for skip in result.skips} == {
        "Conv gains nothing in FP8 on this target; `ops` with it quantizes it too"
    }
    asked = QuantizeFp8(ops=("Conv",)).apply(network(JOINED), context(products, calibration=IMAGES))
    assert len(asked.changed) == 2  # both that read the image are first
    assert len({skip.reason for skip in asked.skips}) == 1


@pytest.mark.tensorrt
def test_tensorrt_moves_the_quantizer_behind_concat_in_front_of_it_by_itself(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    model = network(JOINED)
    QuantizeFp8(first_layer="quantize").apply(model, context(TENSORRT, calibration=IMAGES))
    details = build(model, tmp_path).details
    behind = [layer for layer in details["layers"] if "c_quantized/QuantizeLinear" in layer["nodes"]]
    assert [{each["dtype"] for each in layer["outputs"]} for layer in behind] == [{"fp8"}, {"fp8"}]
    assert not [layer for layer in details["layers"] if any("Concat" in node for node in layer["nodes"])]


def test_a_convolution_before_a_layer_that_is_quantized_already_is_not_the_last() -> None:
    model = network("a = Conv(x, w) b = Conv(a, v) y = MatMul(b, t)")
    for node in model.graph:
        if node.op_type == "MatMul":
            value = node.inputs[1]
            assert value is not None
            value.const_value = ir.tensor(held(8, 8), name="t")
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((8, 8))
            model.graph.register_initializer(value)
    assert quantize(model, ops=("MatMul",)).changed == ("MatMul_2",)
    assert set(quantize(model, ops=("Conv",)).changed) == {"Conv_0", "Conv_1"}


def test_sensitivity_is_measured_of_every_convolution_and_the_last_has_the_rules_reason() -> None:
    from passes.quantize._sensitivity import measure

    model = network(RESIDUAL)
    names = ("Conv_0", "Conv_2", "Conv_5")
    outputs = [str(node.outputs[0].name) for node in model.graph if node.name in names]
    form = QuantizeInt8(activations="static", skip=names)
    found_ = measure(model, outputs, "int8", form, context(CPU, calibration=IMAGES))
    assert [found_[output].reason for output in outputs[:2]] == ["", ""]
    assert found_[outputs[2]].reason == "the model's last layer, kept on this target unless `last_layer: quantize`"
    assert all(0 < each.error < 0.01 for each in found_.values())


@pytest.mark.parametrize("body", [RESIDUAL, JOINED], ids=["residual", "joined"])
def test_a_model_in_fp16_gets_no_pairs_that_onnx_runtime_cannot_fuse_and_loads(body: str, tmp_path: Path) -> None:
    model = network(body)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
    data = Batches(tuple({"x": batch["x"].astype(np.float16)} for batch in IMAGES.batches))
    result = quantize(model, CPU, data)
    assert len(result.changed) >= 2
    assert found(result)["moved in 8 bits"] == found(result)["skip connection"] == 0
    assert "QLinearConcat" not in as_run(model, tmp_path)


def test_pairs_whose_scale_a_node_makes_are_not_repeated() -> None:
    model = network(
        "t = Concat<axis=1>(x, x) sc = Constant<value_float=0.05>() zz = Constant<value = int8 {0}>()"
        " q = QuantizeLinear(t, sc, zz) e = DequantizeLinear(q, sc, zz) f = Slice(e, zero_, sixteen, one_)"
        " a = Conv(x, w) s = Add(a, f) y = Conv(s, v)"
    )
    for name, number in (("zero_", 0), ("sixteen", 16), ("one_", 1)):
        (value,) = {v for node in model.graph for v in node.inputs if v is not None and v.name == name}
        value.const_value = ir.tensor(np.array([number], np.int64), name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape((1,))
        model.graph.register_initializer(value)
    quantize(model)
    onnx.checker.check_model(ir.to_proto(model))


def test_a_relu_that_no_quantized_convolution_feeds_is_joined_in_8_bits_too(tmp_path: Path) -> None:
    model = network(
        "a = Conv(x, w) s = Add(a, x) r = Relu(s) c = Concat<axis=1>(r, a) b = Conv(c, u) y = Conv(b, k)"
    )
    quantize(model)
    assert as_run(model, tmp_path)["QLinearConcat"] == 1


def test_a_convolution_before_a_recurrent_layer_is_not_the_last() -> None:
    body = (
        "a = Conv(x, w) q = ReduceMean<keepdims=0>(a, last) l, h = LSTM<hidden_size=4>(q, lw, lr) y = Identity(h)"
    )
    model = network(body, "float[1,16,4] y")
    arrays = {"last": np.array([3], np.int64), "lw": held(1, 16, 8), "lr": held(1, 16, 4)}
    for name, array in arrays.items():
        (value,) = {v for node in model.graph for v in node.inputs if v is not None and v.name == name}
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    assert quantize(model).changed == ("Conv_0",)
