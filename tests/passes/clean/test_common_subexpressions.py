"""Equal expressions computed once."""

from __future__ import annotations

import numpy as np
import pytest

from passes.clean.common_subexpressions import CommonSubexpressions
from tests.support.runner import context

X = np.float32([[1, -2, 3]])


def test_equal_nodes_become_one_and_what_reads_them_follows(graph, cleaned, ops, found) -> None:
    model = graph("""g (float[n, 3] x) => (float[n, 3] y) <float[3] p = {1, 2, 3}, float[3] q = {1, 2, 3}> {
        a = Mul(x, p)  b = Mul(x, q)
        c = Relu(a)    d = Relu(b)
        y = Add(c, d)
    }""")
    assert found(cleaned(CommonSubexpressions(), model, x=X)) == {"node": 2, "constant": 1}
    assert ops(model) == {"Mul": 1, "Relu": 1, "Add": 1}


@pytest.mark.parametrize(
    "pair",
    [
        "a = LeakyRelu <alpha = 0.1> (x)  b = LeakyRelu <alpha = 0.2> (x)",
        "a = RandomUniformLike(x)  b = RandomUniformLike(x)",
        "h = Sigmoid(x)  a = Bernoulli(h)  b = Bernoulli(h)",
        "a = Sub(x, k)  b = Sub(k, x)",
        "a = Mul(x, k)  b = Mul(x, m)",
        "u = Constant <value_float = 0.0> ()  v = Constant <value_float = -0.0> ()  a = Div(k, u)  b = Div(k, v)",
    ],
)
def test_what_looks_equal_but_is_not_stays(pair: str, graph, ops) -> None:
    model = graph(
        f"g (float[n, 3] x) => (float[n, 3] y) <float k = {{1}}, float m = {{-1}}> {{ {pair}  y = Add(a, b) }}"
    )
    before = ops(model)
    assert CommonSubexpressions().apply(model, context()).rewrites == 0
    assert ops(model) == before


def test_outputs_keep_their_own_nodes(graph, cleaned, ops) -> None:
    model = graph(
        "g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z, float[n, 3] w) { y = Abs(x)  z = Abs(x)  w = Abs(x) }"
    )
    assert cleaned(CommonSubexpressions(), model, x=X).rewrites == 0


def test_an_inner_value_may_take_an_output_computed_before(graph, cleaned, ops) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) { y = Abs(x)  a = Abs(x)  z = Neg(a) }")
    cleaned(CommonSubexpressions(), model, x=X)
    assert ops(model) == {"Abs": 1, "Neg": 1}


def test_a_branch_takes_what_was_computed_outside_but_not_from_the_other_branch(graph, cleaned, ops) -> None:
    model = graph("""g (bool c, float[n, 3] x) => (float[n, 3] y) {
        a = Abs(x)
        b = If(c) <then_branch = t () => (float[n, 3] d) { e = Abs(x)  f = Neg(x)  d = Add(e, f) },
                   else_branch = u () => (float[n, 3] h) { i = Neg(x)  h = Sub(a, i) }>
        j = Neg(x)
        y = Add(b, j)
    }""")
    assert cleaned(CommonSubexpressions(), model, c=True, x=X).rewrites == 1
    assert ops(model) == {"Abs": 1, "If": 1, "Neg": 3, "Add": 2, "Sub": 1}


def test_a_function_with_something_random_inside_is_called_each_time(graph, ops) -> None:
    model = graph(
        "g (float[n, 3] x) => (float[n, 3] y) { a = local.f(x)  b = local.f(x)  y = Add(a, b) }",
        functions="""<domain: "local", opset_import: ["" : 21]>
            f (v) => (w) { r = RandomUniformLike(v)  w = Add(v, r) }""",
    )
    assert CommonSubexpressions().apply(model, context()).rewrites == 0


def test_large_constants_are_not_read(graph, lazy) -> None:
    model = graph(
        "g (float[n, 3] x) => (float[n, 3] y) <float p = {1}, float q = {1}> { a = Mul(x, p)  y = Mul(a, q) }"
    )
    lazy(model, "p", (1 << 20,))
    lazy(model, "q", (1 << 20,))
    assert CommonSubexpressions().apply(model, context()).rewrites == 0
