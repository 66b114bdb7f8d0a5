"""`quantize.simulate`: what it lowers, what it names and leaves; its arithmetic is tested with `quantize.fp4`."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes.base import Pass, PassContext
from passes.quantize.fp4 import QuantizeFp4
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int4 import QuantizeInt4
from passes.quantize.simulate import Simulate
from tests.support import runner
from tests.support.calibration import normal

CONTEXT = PassContext(target=runner.CPU, calibration=normal((8, 64)))


def quantized(*passes: Pass, body: str = "y = MatMul(x, w)", inputs: str = "float[m, 64] x") -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => (float[m, n] y) {{ {body} }}'
    )
    weight = (np.random.default_rng(0).standard_normal((64, 48)) * 0.1).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = ir.from_proto(proto)
    for item in passes:
        assert item.apply(model, CONTEXT).rewrites
    return model


def test_weights_inside_a_sub_graph_are_lowered_and_outputs_survive() -> None:
    body = """c = ReduceSum <keepdims = 0> (x) zero = Constant <value_float = 0.0> () k = Greater(c, zero)
        y = If (k) <
            then_branch = yes () => (float[m, n] p) { p = MatMul(x, w) },
            else_branch = no () => (float[m, n] q) { h = MatMul(x, w) q = Neg(h) }>"""
    model = quantized(QuantizeFp4(), body=body)
    before = [value.name for value in model.graph.outputs]
    assert Simulate().apply(model, CONTEXT).rewrites == 1
    assert [value.name for value in model.graph.outputs] == before
    x = np.ones((3, 64), np.float32)
    plain = quantized(QuantizeFp4())
    Simulate().apply(plain, CONTEXT)
    sign = 1 if x.sum() > 0 else -1
    # The same float32 sums in another graph, possibly in another order.
    expected = sign * runner.run(plain, {"x": x})["y"]
    np.testing.assert_allclose(runner.run(model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("item", [QuantizeInt4(form="standard"), QuantizeFp8(), QuantizeFp8(activations="none")])
def test_what_onnxruntime_runs_itself_is_left_alone(item: Pass) -> None:
    model = quantized(item)
    before = ir.to_proto(model).SerializeToString()
    assert Simulate().apply(model, CONTEXT).rewrites == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_an_activation_of_unknown_width_is_named_and_left_alone() -> None:
    model = quantized(QuantizeFp4(activations="dynamic"))
    model.graph.inputs[0].shape = ir.Shape(["m", "width"])
    result = Simulate().apply(model, CONTEXT)
    assert [pattern.found for pattern in result.patterns] == [1, 0]
    assert "needs a known multiple of 16" in result.skips[0].reason
    assert "TRT_FP4DynamicQuantize" in [node.op_type for node in model.graph]


def test_a_second_run_changes_nothing_and_the_note_says_that_it_is_a_simulation() -> None:
    model = quantized(QuantizeFp4(activations="dynamic"))
    assert "simulation" in Simulate().apply(model, CONTEXT).notes[0]
    before = ir.to_proto(model).SerializeToString()
    second = Simulate().apply(model, CONTEXT)
    assert (second.rewrites, second.notes) == (0, ())
    assert ir.to_proto(model).SerializeToString() == before
