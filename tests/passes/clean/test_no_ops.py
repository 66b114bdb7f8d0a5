"""Operators that give their input back."""

from __future__ import annotations

import numpy as np
import pytest

from passes.clean.no_ops import NoOps
from tests.support.runner import context

X = np.float32([[1, -2, 3]])
HEAD = """g (float[n, 3] x) => (float[n, 3] y)
    <float zero = {0}, float one = {1}, float[1] ones = {1}, bool no = {0}, bool yes = {1}, float ratio = {0.5},
     int64[4] none = {0, 0, 0, 0}>"""


@pytest.mark.parametrize(
    "middle",
    [
        "b = Identity(a)",
        "b = Cast <to = 1> (a)",
        "b = Dropout(a)",
        "b = Dropout(a, ratio, no)",
        "b = Concat <axis = 0> (a)",
        "b = Sum(a)",
        "b = Transpose <perm = [0, 1]> (a)",
        "b = Pad(a, none)",
        "b = Add(a, zero)",
        "b = Add(zero, a)",
        "b = Sub(a, zero)",
        "b = Mul(ones, a)",
        "b = Div(a, one)",
        "b = Pow(a, one)",
    ],
)
def test_it_is_bypassed(middle: str, graph, cleaned, ops) -> None:
    model = graph(f"{HEAD} {{ a = Abs(x)  {middle}  y = Neg(b) }}")
    for node in model.graph:
        node.outputs[0].dtype = model.graph.inputs[0].dtype
    model.graph[0].outputs[0].shape = model.graph.inputs[0].shape
    assert cleaned(NoOps(), model, x=X).rewrites == 1
    assert ops(model) == {"Abs": 1, "Neg": 1}


@pytest.mark.parametrize(
    "middle",
    [
        "b = Sub(zero, a)",
        "b = Div(one, a)",
        "b = Mul(a, zero)",
        "b = Add(a, one)",
        "b = Transpose <perm = [1, 0]> (a)",
        "c = Cast <to = 7> (a)  b = Cast <to = 1> (c)",
        "b = Dropout <seed = 1> (a, ratio, yes)",
        "b = Concat <axis = 0> (a, a)",
    ],
)
def test_what_looks_like_it_but_is_not_stays(middle: str, graph, ops) -> None:
    model = graph(f"{HEAD.replace('[n, 3] y', '[p, q] y')} {{ a = Abs(x)  {middle}  y = Neg(b) }}")
    before = ops(model)
    assert NoOps().apply(model, context()).rewrites == 0
    assert ops(model) == before


def test_a_constant_that_adds_a_dimension_is_no_no_op(graph, cleaned, ops) -> None:
    model = graph(
        "g (float[3] x) => (float[1, 3] y) <float[1, 1] one = {1}> { a = Abs(x)  b = Mul(a, one)  y = Neg(b) }"
    )
    model.graph[0].outputs[0].shape = model.graph.inputs[0].shape
    assert cleaned(NoOps(), model, x=X[0]).rewrites == 0


def test_an_output_keeps_its_name_and_shape(graph, cleaned, ops) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y) { a = Abs(x)  y = Identity(a) }")
    cleaned(NoOps(), model, x=X)
    assert [(node.op_type, node.outputs[0].name) for node in model.graph] == [("Abs", "y")]


def test_between_an_input_a_weight_or_an_output_and_an_output_it_stays(graph, cleaned, ops) -> None:
    model = graph("""g (float[n, 3] x) => (float[n, 3] y, float[2] w, float[n, 3] a, float[n, 3] b)
            <float[2] v = {1, 2}> {
        y = Identity(x)
        w = Identity(v)
        a = Abs(x)
        b = Identity(a)
    }""")
    assert cleaned(NoOps(), model, x=X).rewrites == 0


def test_a_branch_that_only_hands_on_an_outer_value_stays(graph, cleaned, ops) -> None:
    model = graph("""g (bool c, float[n, 3] x) => (float[n, 3] y) {
        a = Abs(x)
        y = If(c) <then_branch = t () => (float[n, 3] b) { b = Identity(a) },
                   else_branch = e () => (float[n, 3] d) { i = Identity(a)  d = Neg(i) }>
    }""")
    assert cleaned(NoOps(), model, c=True, x=X).rewrites == 1
    assert ops(model) == {"Abs": 1, "If": 1, "Identity": 1, "Neg": 1}


def test_a_value_used_twice_reaches_both_users(graph, cleaned, ops) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y) { a = Abs(x)  b = Identity(a)  c = Neg(b)  y = Add(b, c) }")
    cleaned(NoOps(), model, x=X)
    assert ops(model) == {"Abs": 1, "Neg": 1, "Add": 1}


def test_a_number_that_a_caller_may_override_counts_as_unknown(graph) -> None:
    model = graph("g (float[n, 3] x, float k = {1}) => (float[n, 3] y) { a = Mul(x, k)  y = Neg(a) }")
    assert NoOps().apply(model, context()).rewrites == 0


def test_an_output_that_something_else_hands_on_keeps_its_name(graph, cleaned, ops) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) { y = Abs(x)  i = Identity(y)  z = Neg(i) }")
    cleaned(NoOps(), model, x=X)
    assert ops(model) == {"Abs": 1, "Neg": 1}
