from __future__ import annotations

import pytest

from passes.fuse.layer_norm import FuseLayerNorm
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = (
    "float[8] w = {1,2,3,4,5,6,7,8}, float[8] b = {8,7,6,5,4,3,2,1}, float eps = {0.00001}, float two = {2.0},"
    " int64[1] last = {-1}, int64[1] tokens = {1}"
)
ROOT = "m = ReduceMean(q, last) s = Add(m, eps) r = Sqrt(s) "
HEAD = "a = ReduceMean(x, last) d = Sub(x, a) "
SPELLINGS = {
    "Pow and Div": HEAD + "q = Pow(d, two) " + ROOT + "n = Div(d, r) k = Mul(n, w) y = Add(k, b)",
    "Mul and Reciprocal": HEAD
    + "q = Mul(d, d) m = ReduceMean(q, last) s = Add(eps, m) r = Sqrt(s) "
    + "i = Reciprocal(r) n = Mul(d, i) k = Mul(w, n) y = Add(b, k)",
    "no bias": HEAD + "q = Mul(d, d) " + ROOT + "n = Div(d, r) y = Mul(n, w)",
    "neither scale nor bias": HEAD + "q = Mul(d, d) " + ROOT + "y = Div(d, r)",
}
ENDS = ("float[B,S,8] x", "float[B,S,8] y", WEIGHTS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_one_operator_with_equal_outputs(spelling: str) -> None:
    before, after = graph(SPELLINGS[spelling], *ENDS), graph(SPELLINGS[spelling], *ENDS)
    assert FuseLayerNorm().apply(after, context()).rewrites == 1
    assert operators(after) == {"LayerNormalization": 1}
    assert_same_outputs(after, before)
    assert FuseLayerNorm().apply(after, context()).rewrites == 0


def test_means_over_different_axes_are_left_alone_with_the_reason() -> None:
    body = SPELLINGS["no bias"].replace("a = ReduceMean(x, last)", "a = ReduceMean(x, tokens)")
    result = FuseLayerNorm().apply(graph(body, *ENDS), context())
    assert result.rewrites == 0
    assert "needs the last" in result.patterns[0].near_misses[0].reason


def test_a_centred_value_read_elsewhere_keeps_being_computed() -> None:
    before = graph(SPELLINGS["no bias"], ENDS[0], "float[B,S,8] y, float[B,S,8] d", WEIGHTS)
    after = graph(SPELLINGS["no bias"], ENDS[0], "float[B,S,8] y, float[B,S,8] d", WEIGHTS)
    assert FuseLayerNorm().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)
