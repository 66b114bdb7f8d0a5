"""Shapes and types of inner values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.clean.shapes import InferShapes
from tests.support.runner import context

MODEL = """g (float[batch, 4] x) => (float[batch, 3] y) <float[4, 3] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}> {
    a = MatMul(x, w)
    y = Relu(a)
}"""
X = np.float32([[1, -2, 3, 4]])


def value(model: ir.Model, name: str) -> ir.Value:
    return next(item for node in model.graph.all_nodes() for item in node.outputs if item.name == name)


def test_inner_values_learn_their_type_and_shape(graph, cleaned, found) -> None:
    model = graph(MODEL)
    assert found(cleaned(InferShapes(), model, x=X)) == {"value": 1}
    assert (str(value(model, "a").shape), value(model, "a").dtype) == ("[batch,3]", ir.DataType.FLOAT)


def test_what_is_known_better_is_kept(graph, cleaned, found) -> None:
    model = graph("g (float[n, 4] x) => (float[m, k] y) { a = Relu(x)  y = Neg(a) }")
    value(model, "a").shape, value(model, "a").dtype = ir.Shape([2, 4]), ir.DataType.FLOAT
    assert found(cleaned(InferShapes(), model)) == {}
    assert str(value(model, "a").shape) == "[2,4]"
    assert str(model.graph.outputs[0].shape) == "[m,k]"


def test_a_declared_shape_is_kept_even_where_inference_says_otherwise(graph) -> None:
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { a = Relu(x)  y = Neg(a) }")
    value(model, "a").shape, value(model, "a").dtype = ir.Shape([2, 5]), ir.DataType.FLOAT
    InferShapes().apply(model, context())
    assert str(value(model, "a").shape) == "[2,5]"


def test_branches_are_inferred_too(graph, cleaned) -> None:
    model = graph("""g (bool c, float[2, 3] x) => (float[2, 3] y) {
        y = If(c) <then_branch = t () => (float[2, 3] b) { n = Neg(x)  b = Relu(n) },
                   else_branch = e () => (float[2, 3] d) { d = Abs(x) }>
    }""")
    cleaned(InferShapes(), model)
    assert str(value(model, "n").shape) == "[2,3]"


def test_large_weights_stay_lazy_and_in_their_order(graph, lazy) -> None:
    model = graph(
        "g (float[n, 4] x) => (float[n, 4] y) <float w1 = {1}, float w2 = {2}> { a = Mul(x, w1)  y = Mul(a, w2) }"
    )
    lazy(model, "w1", (1 << 20,))
    InferShapes().apply(model, context())
    assert list(model.graph.initializers) == ["w1", "w2"]


def test_a_sequence_stays_a_sequence(graph, cleaned) -> None:
    model = graph("""g (float[4, 3] x) => (int64 y) {
        s = SplitToSequence <axis = 0> (x)
        y = SequenceLength(s)
    }""")
    cleaned(InferShapes(), model, x=np.zeros((4, 3), np.float32))
    assert isinstance(value(model, "s").type, ir.SequenceType)


def test_a_model_that_defeats_inference_keeps_its_shapes_and_says_so(graph) -> None:
    model = graph("g (float[2, 3] x, float[2, 3] w) => (float[2, 3] y) { a = Relu(x)  y = Add(a, w) }")
    model.graph[1].domain = "vendor"  # which the model does not import
    (note,) = InferShapes().apply(model, context()).notes
    assert note.startswith("Shapes could not be inferred and stay as they were:")
