"""Constant folding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes.base import PassFailed
from passes.clean.dead_code import DeadCode
from passes.clean.fold_constants import FoldConstants
from passes.names import NAME_SCOPES, module_of
from tests.support.runner import context

X = np.float32([[1, -2, 3]])


def test_what_does_not_depend_on_the_inputs_is_computed(graph, cleaned, ops, found) -> None:
    model = graph("""g (float[n, 3] x) => (float[n, 3] y) <float[3] p = {1, 2, 3}, float[3] q = {4, 5, 6}> {
        s = Add(p, q)
        t = Sqrt(s)
        y = Mul(x, t)
    }""")
    assert found(cleaned(FoldConstants(), model, x=X)) == {"folded": 2}
    assert ops(model) == {"Mul": 1}
    (weight,) = model.graph.initializers.values()
    np.testing.assert_array_equal(weight.const_value.numpy(), np.sqrt(np.float32([5, 7, 9])))


def test_a_known_shape_becomes_a_constant_and_an_unknown_one_stays(graph, cleaned, ops) -> None:
    model = graph("g (float[2, 3] x, float[n, 3] z) => (int64[2] y, int64[2] u) { y = Shape(x)  u = Shape(z) }")
    cleaned(FoldConstants(), model, x=np.zeros((2, 3), np.float32), z=np.zeros((5, 3), np.float32))
    assert ops(model) == {"Constant": 1, "Shape": 1}


def test_the_taken_branch_of_a_constant_if_stays(graph, cleaned, ops) -> None:
    model = graph("""g (float[n, 3] x) => (float[n, 3] y) <bool c = {1}> {
        a = If(c) <then_branch = t () => (float[n, 3] b) { b = Neg(x) },
                   else_branch = e () => (float[n, 3] d) { d = Abs(x) }>
        y = Relu(a)
    }""")
    cleaned(FoldConstants(), model, x=X)
    assert ops(model) == {"Neg": 1, "Relu": 1}


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomUniform <shape = [3]> ()",
        "r = Bernoulli(p)",
        "i = QuantizeLinear(p, k, z)  r = DequantizeLinear(i, k, z)",
        "s = Constant <value_ints = [3]> ()  r = ConstantOfShape <value = float[1] {2}> (s)",
    ],
)
def test_random_quantizing_and_filling_operators_are_left_alone(body: str, graph, ops) -> None:
    model = graph(f"""g (float[n, 3] x) => (float[n, 3] y)
        <float[3] p = {{1, 1, 0}}, float k = {{0.5}}, int8 z = {{0}}> {{ {body}  y = Mul(x, r) }}""")
    before = ops(model)
    assert FoldConstants().apply(model, context()).rewrites == 0
    assert ops(model) == before


def test_a_constant_that_a_caller_may_override_is_not_folded(graph, ops) -> None:
    model = graph("g (float[n, 3] x, float[3] p = {1, 2, 3}) => (float[n, 3] y) { s = Sqrt(p)  y = Mul(x, s) }")
    FoldConstants().apply(model, context())
    assert ops(model)["Sqrt"] == 1


def test_large_weights_are_not_read_and_the_place_is_named(graph, lazy, ops) -> None:
    model = graph("""g (float[n, 3] x) => (float[n, 3] y) <float[3] w = {1, 2, 3}> {
        [layer] t = Transpose(w)
        y = Mul(x, t)
    }""")
    lazy(model, "w", (1 << 20,))
    (skip,) = FoldConstants().apply(model, context()).skips
    assert (skip.node, skip.reason) == ("layer", "reads 4194304 bytes of constants, at most 65536 are read")
    assert ops(model) == {"Transpose": 1, "Mul": 1}


def test_a_function_is_not_folded_where_it_depends_on_its_caller(graph, cleaned, ops) -> None:
    model = graph(
        "g (float[n, 3] x) => (float[n, 3] y) { a = local.f <k = 0.5> (x)  y = local.f <k = 2.0> (a) }",
        functions="""<domain: "local", opset_import: ["" : 21]>
            f <k> (v) => (w) {
                c = Constant <value_float: float = @k> ()
                o = Constant <value_float = 3.0> ()
                p = Sqrt(o)
                q = Mul(c, p)
                w = Mul(v, q)
            }""",
    )
    cleaned(FoldConstants(), model, x=X)
    (function,) = model.functions.values()
    assert "Sqrt" not in [node.op_type for node in function]


def test_a_shared_constant_lives_on_for_its_other_user(graph, cleaned) -> None:
    model = graph("""g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) <float[3] p = {1, 2, 3}> {
        s = Sqrt(p)
        y = Mul(x, s)
        z = Mul(x, p)
    }""")
    cleaned(FoldConstants(), model, x=X)
    cleaned(DeadCode(), model, x=X)
    assert "p" in model.graph.initializers


def test_what_replaces_a_node_keeps_its_module(graph) -> None:
    model = graph("g (float[2] x, int64[2] k) => (float[2] y) { y = CastLike(k, x) }")
    model.graph[0].metadata_props[NAME_SCOPES] = "['', 'encoder', 'cast']"
    FoldConstants().apply(model, context())
    assert [(node.op_type, module_of(node)) for node in model.graph] == [("Cast", "encoder")]


def test_the_same_model_gives_the_same_bytes(graph) -> None:
    text = "g (float[n, 3] x) => (float[n, 3] y) <float[3] p = {1, 2, 3}> { s = Exp(p)  t = Sin(s)  y = Mul(x, t) }"
    made = set()
    for _ in range(2):
        model = graph(text)
        FoldConstants().apply(model, context())
        made.add(ir.to_proto(model).SerializeToString(deterministic=True))
    assert len(made) == 1


def test_an_operator_that_cannot_be_computed_is_named(graph) -> None:
    model = graph("""g (float[n, 3] x) => (int64[1] y) <int64[1] i = {5}> {
        s = Shape(x)
        [bad] y = Gather <axis = 0> (s, i)
    }""")
    with pytest.raises(PassFailed, match=r"fold_constants: .*'bad'.*index out of range"):
        FoldConstants().apply(model, context())


def test_a_sequence_below_opset_13_is_left_alone(graph, ops) -> None:
    text = """g (float[4, 3] x) => (float[2, 3] y) <int64 at = {1}, int64[2] parts = {2, 2}> {
        s = SplitToSequence <axis = 0> (x, parts)
        y = SequenceAt(s, at)
    }"""
    old, new = graph(text, opset=12), graph(text, opset=13)
    FoldConstants().apply(old, context())
    FoldConstants().apply(new, context())
    assert (ops(old), "Split" in ops(new)) == ({"SplitToSequence": 1, "SequenceAt": 1}, True)


def test_an_output_keeps_the_shape_it_was_declared_with(graph, cleaned) -> None:
    model = graph("g (float[n, 3] x) => (float[a, b] y) <float[1] k = {2}> { h = Mul(x, k)  y = Identity(h) }")
    cleaned(FoldConstants(), model, x=X)
