from __future__ import annotations

import pytest

from passes.fuse.gelu import FuseGelu
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context

WEIGHTS = (
    "float root = {1.4142135}, float inverse = {0.70710677}, float half = {0.5}, float one = {1.0}"
    ", float three = {3.0}, float two = {2.0}, float cube = {0.044715}, float c = {0.7978845608}"
    ", float quick = {1.702}, float wrong = {0.6}"
)
ERF = {
    "division first": "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "half of x first": "d = Mul(x, inverse) e = Erf(d) a = Add(one, e) h = Mul(half, x) y = Mul(h, a)",
    "half of the sum first": "d = Mul(x, inverse) e = Erf(d) a = Add(one, e) h = Mul(a, half) y = Mul(x, h)",
    "division by two": "d = Mul(x, inverse) e = Erf(d) a = Add(one, e) h = Mul(a, x) y = Div(h, two)",
}
TANH = {
    "Pow": (
        "p = Pow(x, three) k = Mul(p, cube) s = Add(x, k) i = Mul(s, c) t = Tanh(i) a = Add(t, one) "
        "h = Mul(x, half) y = Mul(h, a)"
    ),
    "products": (
        "p = Mul(x, x) p3 = Mul(p, x) k = Mul(cube, p3) s = Add(k, x) i = Mul(c, s) t = Tanh(i) a = "
        "Add(one, t) m = Mul(x, a) y = Mul(half, m)"
    ),
    "factored": (
        "p = Mul(x, x) k = Mul(cube, p) q = Add(k, one) xq = Mul(x, q) i = Mul(xq, c) t = Tanh(i) a "
        "= Add(one, t) m = Mul(x, a) y = Mul(half, m)"
    ),
}
ENDS = ("float[B,S,8] x", "float[B,S,8] y", WEIGHTS)


@pytest.mark.parametrize("body", ERF.values(), ids=ERF.keys())
def test_every_spelling_of_the_exact_form_becomes_gelu(body: str) -> None:
    before, after = graph(body, *ENDS), graph(body, *ENDS)
    assert FuseGelu().apply(after, context()).patterns[0].found == 1
    assert operators(after) == {"Gelu": 1}
    assert_same_outputs(after, before)
    assert FuseGelu().apply(after, context()).rewrites == 0


@pytest.mark.parametrize("body", TANH.values(), ids=TANH.keys())
def test_every_spelling_of_the_tanh_form_becomes_approximate_gelu(body: str) -> None:
    before, after = graph(body, *ENDS), graph(body, *ENDS)
    assert FuseGelu().apply(after, context()).patterns[1].found == 1
    assert operators(after) == {"Gelu": 1}
    assert_same_outputs(after, before)
    assert FuseGelu().apply(after, context()).rewrites == 0


def test_the_sigmoid_form_becomes_quick_gelu_on_onnx_runtime_and_stays_for_tensorrt() -> None:
    body = "k = Mul(x, quick) s = Sigmoid(k) y = Mul(x, s)"
    before, after, other = graph(body, *ENDS), graph(body, *ENDS), graph(body, *ENDS)
    assert FuseGelu().apply(after, context()).patterns[2].found == 1
    assert operators(after) == {"QuickGelu": 1}
    assert_same_outputs(after, before)
    assert FuseGelu().apply(other, context(TENSORRT)).rewrites == 0
    assert operators(other) == operators(before)


def test_another_factor_is_left_alone_with_the_reason() -> None:
    model = graph(ERF["division first"].replace("half", "wrong"), *ENDS)
    result = FuseGelu().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the factor is 0.6, needs 0.5"]


def test_another_scale_inside_is_left_alone_with_the_reason() -> None:
    model = graph(ERF["division first"].replace("root", "two"), *ENDS)
    result = FuseGelu().apply(model, context())
    assert "Erf's argument is scaled by 0.5, needs 0.707107" in result.patterns[0].near_misses[0].reason


def test_an_error_function_read_elsewhere_stays() -> None:
    model = graph(ERF["division first"], ENDS[0], "float[B,S,8] y, float[B,S,8] e", WEIGHTS)
    assert FuseGelu().apply(model, context()).rewrites == 0
    assert operators(model)["Erf"] == 1
