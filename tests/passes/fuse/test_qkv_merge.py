from __future__ import annotations

from passes.fuse.qkv_merge import FuseQkvMerge
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = "float[2,2] a = {1,2,3,4}, float[2,2] b = {5,6,7,8}, float[2,3] c = {9,1,2,3,4,5}"
BODY = "q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)"
ENDS = ("float[B,S,2] x", "float[B,S,2] q, float[B,S,2] k, float[B,S,3] v", WEIGHTS)


def test_three_products_of_one_value_become_one() -> None:
    before, after = graph(BODY, *ENDS), graph(BODY, *ENDS)
    assert FuseQkvMerge().apply(after, context()).rewrites == 1
    assert operators(after) == {"MatMul": 1, "Split": 1}
    assert_same_outputs(after, before)
    assert FuseQkvMerge().apply(after, context()).rewrites == 0


def test_products_of_different_values_stay_apart() -> None:
    model = graph(BODY.replace("MatMul(x, c)", "MatMul(z, c)"), "float[B,S,2] x, float[B,S,2] z", *ENDS[1:])
    assert FuseQkvMerge().apply(model, context()).rewrites == 0


def test_a_weight_from_outside_is_left_alone_with_the_reason() -> None:
    model = graph(BODY.replace("MatMul(x, c)", "MatMul(x, z)"), "float[B,S,2] x, float[2,3] z", *ENDS[1:])
    result = FuseQkvMerge().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the three weights are not constant matrices of one type"]


def test_a_weight_shared_with_another_product_survives() -> None:
    body, outputs = BODY + " z = MatMul(u, a)", ENDS[1] + ", float[B,2] z"
    before, after = (graph(body, ENDS[0] + ", float[B,2] u", outputs, WEIGHTS) for _ in range(2))
    assert FuseQkvMerge().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)
