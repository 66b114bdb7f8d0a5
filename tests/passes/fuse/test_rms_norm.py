from __future__ import annotations

import pytest

from passes.fuse.rms_norm import FuseRmsNorm
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import CPU, context

WEIGHTS = (
    "float[8] w = {1,2,3,4,5,6,7,8}, float eps = {0.00001}, float two = {2.0}, float one = {1.0}"
    ", int64[1] last = {-1}"
)
TAIL = "s = Add(m, eps) r = Sqrt(s) "
SPELLINGS = {
    "Pow, Reciprocal": "q = Pow(x, two) m = ReduceMean(q, last) "
    + TAIL
    + "i = Reciprocal(r) n = Mul(x, i) y = Mul(n, w)",
    "Mul, Div": "q = Mul(x, x) m = ReduceMean(q, last) " + TAIL + "n = Div(x, r) y = Mul(w, n)",
    "one over the root": "q = Mul(x, x) m = ReduceMean(q, last) "
    + TAIL
    + "i = Div(one, r) n = Mul(i, x) y = Mul(w, n)",
    "no scale": "q = Mul(x, x) m = ReduceMean(q, last) " + TAIL + "y = Div(x, r)",
    "computed scale": "q = Mul(x, x) m = ReduceMean(q, last) "
    + TAIL
    + "n = Div(x, r) g = Add(w, one) y = Mul(n, g)",
}
ENDS = ("float[B,S,8] x", "float[B,S,8] y", WEIGHTS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_one_operator_with_equal_outputs(spelling: str) -> None:
    before, after = graph(SPELLINGS[spelling], *ENDS), graph(SPELLINGS[spelling], *ENDS)
    assert FuseRmsNorm().apply(after, context()).rewrites == 1
    assert operators(after)["RMSNormalization"] == 1
    assert "ReduceMean" not in operators(after)
    assert_same_outputs(after, before)
    assert FuseRmsNorm().apply(after, context()).rewrites == 0


def test_a_mean_over_the_tokens_is_left_alone_with_the_reason() -> None:
    body = SPELLINGS["Mul, Div"].replace("last", "axis")
    model = graph(body, ENDS[0], ENDS[1], WEIGHTS + ", int64[1] axis = {1}")
    result = FuseRmsNorm().apply(model, context())
    assert result.rewrites == 0
    assert [miss.reason for miss in result.patterns[0].near_misses] == [
        "the mean is over axes (1,), needs the last, kept"
    ]


def test_a_root_that_divides_something_else_is_left_alone() -> None:
    body = SPELLINGS["Mul, Div"].replace("Div(x, r)", "Div(z, r)")
    model = graph(body, "float[B,S,8] x, float[B,S,8] z", ENDS[1], WEIGHTS)
    result = FuseRmsNorm().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the root does not divide what was squared"]


def test_a_mean_square_that_is_a_graph_output_stays() -> None:
    model = graph(SPELLINGS["Mul, Div"], ENDS[0], "float[B,S,8] y, float[B,S,1] m", WEIGHTS)
    assert FuseRmsNorm().apply(model, context()).rewrites == 0
    assert operators(model)["ReduceMean"] == 1


def test_a_target_below_opset_23_keeps_the_plain_form() -> None:
    model = graph(SPELLINGS["Mul, Div"], *ENDS)
    result = FuseRmsNorm().apply(model, context(CPU.model_copy(update={"opset": 20})))
    assert result.rewrites == 0
    assert result.patterns[0].near_misses[0].reason == "needs opset 23, CPU reads up to 20"
    assert model.opset_imports[""] == 20
