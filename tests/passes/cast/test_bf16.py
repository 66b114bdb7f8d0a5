"""BF16: the graph's types, the opset it needs, and its numbers against NumPy's bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from passes.cast.bf16 import CastBf16
from tests.support.calibration import normal
from tests.support.runner import CPU, TENSORRT, context

Make = Callable[..., ir.Model]

CNN = """g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] y) {
    c = Conv <pads=[1, 1, 1, 1]> (x, w)
    r = Relu(c)
    y = Add(r, x)
}"""


def test_every_node_computes_in_bfloat16_and_the_opset_has_it(make: Make) -> None:
    model = make(CNN, w=(4, 4, 3, 3))
    result = CastBf16().apply(model, context(TENSORRT))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.opset_imports[""] == 22
    assert result.rewrites == 3
    assert {node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"} == {ir.DataType.BFLOAT16}


def test_the_numbers_are_those_of_bfloat16(make: Make) -> None:
    model = make("g (float[8, 4] x) => (float[8, 4] y) { a = Mul(x, w) y = Add(a, x) }", w=(4,))
    x = normal((8, 4), 1).batches[0]["x"]
    kind = ml_dtypes.bfloat16
    w = model.graph.initializers["w"].const_value
    assert w is not None
    narrow, weight = x.astype(kind), w.numpy().astype(kind)
    expected = ((narrow * weight).astype(kind) + narrow).astype(kind).astype(np.float32)
    CastBf16().apply(model, context(TENSORRT))
    got = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, expected)


def test_what_float16_cannot_hold_needs_no_exception(make: Make) -> None:
    model = make("g (float[n, 4] x) => (float[n, 4] y) { y = Mul(x, w) }", w=np.array([1, 2, 3, 1e30], np.float32))
    assert not CastBf16().apply(model, context(TENSORRT)).skips


def test_a_kept_operator_is_named_and_a_second_run_changes_nothing(make: Make) -> None:
    model = make("g (float[n, 4] x) => (float[n, 1] y) { a = Relu(x) y = ReduceSum(a, axes) }", axes=np.array([1]))
    result = CastBf16().apply(model, context(TENSORRT))
    assert ["ReduceSum stays in float32" in item.reason for item in result.skips] == [True]
    before = ir.to_onnx_text(model)
    assert CastBf16().apply(model, context(TENSORRT)).rewrites == 0
    assert ir.to_onnx_text(model) == before


def test_a_target_without_bf16_is_refused() -> None:
    assert "does not compute in BF16" in str(CastBf16().check(CPU))
    assert CastBf16().check(TENSORRT) is None
