"""FP16: what is cast, what keeps float32 and why, and that the numbers hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.cast.fp16 import CastFp16
from tests.support.calibration import Batches, normal
from tests.support.runner import CPU, TENSORRT, context, run

Make = Callable[..., ir.Model]

MLP = """g (float[n, 32] x) => (float[n, 8] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    y = MatMul(c, w2)
}"""
MLP_WEIGHTS = {"w1": (32, 16), "b1": (16,), "w2": (16, 8)}


def valid(model: ir.Model) -> None:
    """Every type is stated and agrees: what a strongly typed engine asks for."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def error(expected: np.ndarray, got: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


HALF_ERROR = 2.0**-9  # float16 keeps 11 significant bits; two roundings a layer, two layers


def test_all_nodes_compute_in_float16_between_two_casts(make: Make) -> None:
    model, feeds = make(MLP, **MLP_WEIGHTS), normal((64, 32), 1).batches[0]
    expected = run(model, feeds)["y"]
    result = CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Add", "Relu", "MatMul", "Cast"]
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert (result.rewrites, result.figures["casts inserted"]) == (4, 2)
    got = run(model, feeds)["y"]
    assert got.dtype == np.float32
    assert 0 < error(expected, got) < HALF_ERROR < error(expected, got * 1.01)


def test_inputs_and_outputs_keep_their_names_types_and_order(make: Make) -> None:
    model = make(
        "g (float[n, 4] x, int64[n] i) => (float[n, 4] y, float[n, 4] z, float[n, 4] x2)"
        " { y = Relu(x) z = Add(y, w) x2 = Identity(x) }",
        w=(4,),
    )
    ends = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == ends


def test_a_second_run_changes_nothing(make: Make) -> None:
    model = make(MLP, **MLP_WEIGHTS)
    CastFp16(skip=("Relu",)).apply(model, context(TENSORRT))
    before = [node.op_type for node in model.graph], set(model.graph.initializers)
    assert CastFp16(skip=("Relu",)).apply(model, context(TENSORRT)).rewrites == 0
    assert ([node.op_type for node in model.graph], set(model.graph.initializers)) == before


def test_a_skipped_node_keeps_float32_between_casts_and_is_named(make: Make) -> None:
    model = make(MLP, **MLP_WEIGHTS)
    result = CastFp16(skip=("Relu",)).apply(model, context(TENSORRT))
    valid(model)
    relu = next(node for node in model.graph if node.op_type == "Relu")
    assert relu.outputs[0].dtype == ir.DataType.FLOAT
    assert [item.reason for item in result.skips] == ["listed under skip"]


def test_an_epsilon_that_would_vanish_keeps_its_node_in_float32(make: Make) -> None:
    model = make("g (float[n, 4] x) => (float[n, 4] y) { c = Max(x, e) y = Div(x, c) }", e=np.float32(1e-12))
    result = CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert [item.reason for item in result.skips] == ["constant 'e' is 1e-12, which FLOAT16 rounds to 0"]


def test_a_value_that_overflows_on_the_calibration_data_keeps_its_nodes_in_float32(make: Make) -> None:
    model = make(
        "g (float[n, 4] x) => (float[n, 4] y) { s = Mul(x, x) y = Div(s, w) r = Relu(x) }", w=np.float32(3e4)
    )
    data = Batches(tuple({"x": batch["x"] * 300} for batch in normal((64, 4)).batches))
    expected = run(model, data.batches[0])["y"]
    result = CastFp16().apply(model, context(TENSORRT, calibration=data))
    valid(model)
    assert {item.node for item in result.skips} == {"Mul", "Div"}
    assert all("on the calibration data, beyond 3.275e+04" in item.reason for item in result.skips)
    np.testing.assert_array_equal(run(model, data.batches[0])["y"], expected)


def test_a_mask_that_stands_for_infinity_is_clipped_and_reported(make: Make) -> None:
    lowest = np.finfo(np.float32).min
    model = make(
        "g (float[n, 4] x, bool[n, 4] m) => (float[n, 4] y) { s = Where(m, x, low) y = Softmax(s) }", low=lowest
    )
    feeds = {**normal((8, 4), 1).batches[0], "m": np.tile([True, False, True, True], (8, 1))}
    expected = run(model, feeds)["y"]
    result = CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert any("stand for infinity were clipped to ±32752" in note for note in result.notes)
    assert error(expected, run(model, feeds)["y"]) < HALF_ERROR


def test_a_constant_beyond_the_range_keeps_its_node_in_float32(make: Make) -> None:
    model = make("g (float[n, 4] x) => (float[n, 4] y) { y = Mul(x, w) }", w=np.array([1, 2, 3, 1e6], np.float32))
    result = CastFp16().apply(model, context(TENSORRT))
    assert [item.reason for item in result.skips] == ["constant 'w' reaches 1e+06, beyond 3.275e+04"]


def test_a_subgraph_keeps_float32_and_reads_float32(make: Make) -> None:
    model = make(
        """g (float[n, 4] x, bool c) => (float[n, 4] y) {
            h = Relu(x)
            y = If (c) <
                then_branch = yes () => (float[n, 4] p) { p = Neg(h) },
                else_branch = no () => (float[n, 4] q) { q = Abs(h) }
            >
        }"""
    )
    feeds = {**normal((8, 4), 1).batches[0], "c": np.array(True)}
    expected = run(model, feeds)["y"]
    result = CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert [item.reason for item in result.skips] == ["If holds a sub-graph"]
    assert error(expected, run(model, feeds)["y"]) < HALF_ERROR


def test_inputs_that_the_standard_types_as_float32_stay_so(make: Make) -> None:
    model = make(
        'g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) { y = Resize <mode="nearest"> (x, , scales) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert model.graph.initializers["scales"].dtype == ir.DataType.FLOAT


def test_a_cast_from_integers_gives_float16_at_once(make: Make) -> None:
    model = make("g (int64[n, 4] i, float[n, 4] x) => (float[n, 4] y) { f = Cast <to=1> (i) y = Mul(f, x) }")
    CastFp16().apply(model, context(TENSORRT))
    valid(model)
    assert [node.op_type for node in model.graph].count("Cast") == 3


def test_weights_are_read_when_written_not_kept(make: Make) -> None:
    model = make(MLP, **MLP_WEIGHTS)
    CastFp16().apply(model, context(TENSORRT))
    assert all(isinstance(value.const_value, ir.LazyTensor) for value in model.graph.initializers.values())


@pytest.mark.parametrize("clean", [True, False])
def test_unchecked_ranges_are_said_to_be_unchecked(make: Make, clean: bool) -> None:
    data = normal((8, 32)) if clean else None
    notes = CastFp16().apply(make(MLP, **MLP_WEIGHTS), context(TENSORRT, calibration=data)).notes
    assert any("Ranges were not checked" in note for note in notes) is not clean


def test_a_target_without_fp16_is_refused_with_what_it_has() -> None:
    assert CastFp16().check(CPU) == "CPU does not compute in FP16; it runs fp32, int8"
    assert CastFp16().check(TENSORRT) is None
