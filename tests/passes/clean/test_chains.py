"""Two operators in a row that are one."""

from __future__ import annotations

import numpy as np
import pytest

from passes.clean.chains import Chains
from tests.support.runner import context

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
HEAD = """g (float[2, 3, 4] x) => (float[p, q, r] y)
    <int64[2] s = {6, 4}, int64[3] t = {4, 3, 2}, int64[3] z = {0, 3, 8}, int64[1] k = {1}, int64[1] j = {2}>"""


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Reshape(x, s)  b = Reshape(a, t)", {"Reshape": 1}),
        ("a = Flatten(x)  b = Reshape(a, t)", {"Reshape": 1}),
        ("a = Unsqueeze(x, k)  b = Reshape(a, t)", {"Reshape": 1}),
        ("a = Transpose <perm = [0, 2, 1]> (x)  b = Transpose <perm = [1, 0, 2]> (a)", {"Transpose": 1}),
        ("a = Unsqueeze(x, k)  b = Squeeze(a, k)", {"Identity": 1}),
        ("a = Reshape(x, s)  c = Reshape(a, t)  d = Reshape(c, s)  b = Reshape(d, t)", {"Reshape": 1}),
        ("a = Cast <to = 11> (x)  b = Cast <to = 1> (a)", {"Identity": 1}),
    ],
)
def test_they_become_one(body: str, left: dict[str, int], graph, cleaned, ops) -> None:
    model = graph(f"{HEAD} {{ {body}  y = Neg(b) }}")
    cleaned(Chains(), model, x=X)
    assert ops(model) == {**left, "Neg": 1}


@pytest.mark.parametrize(
    "body",
    [
        "a = Reshape(x, s)  b = Reshape(a, z)",
        "a = Unsqueeze(x, k)  c = Unsqueeze(a, j)  b = Squeeze(c, k)",
        "a = Cast <to = 10> (x)  b = Cast <to = 1> (a)",
        "a = Cast <to = 7> (x)  b = Cast <to = 1> (a)",
        "a = Transpose <perm = [0, 2, 1]> (x)  c = Relu(a)  b = Transpose <perm = [0, 2, 1]> (c)",
    ],
)
def test_what_looks_like_it_but_is_not_stays(body: str, graph, ops) -> None:
    model = graph(f"{HEAD.replace('float[p, q, r] y', 'float y')} {{ {body}  y = ReduceSum <keepdims = 0> (b) }}")
    before = ops(model)
    assert Chains().apply(model, context()).rewrites == 0
    assert ops(model) == before


def test_a_value_used_elsewhere_or_given_out_stays(graph, cleaned, ops) -> None:
    model = graph("""g (float[2, 3, 4] x) => (float[6, 4] a, float[4, 3, 2] y)
            <int64[2] s = {6, 4}, int64[3] t = {4, 3, 2}> {
        a = Reshape(x, s)
        y = Reshape(a, t)
    }""")
    cleaned(Chains(), model, x=X)
    assert ops(model) == {"Reshape": 2}
    assert model.graph[1].inputs[0] is model.graph.inputs[0]


def test_chains_inside_a_branch_are_shortened(graph, cleaned, ops) -> None:
    model = graph("""g (bool c, float[2, 3, 4] x) => (float[2, 3, 4] y) {
        a = Transpose <perm = [2, 1, 0]> (x)
        y = If(c) <then_branch = t () => (float[2, 3, 4] b) { b = Transpose <perm = [2, 1, 0]> (a) },
                   else_branch = e () => (float[2, 3, 4] d) { d = Neg(x) }>
    }""")
    cleaned(Chains(), model, c=True, x=X)
    assert ops(model) == {"If": 1, "Transpose": 1, "Neg": 1}
