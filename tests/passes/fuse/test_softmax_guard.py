from __future__ import annotations

import pytest

from passes.fuse.softmax_guard import FuseSoftmaxGuard
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = "float zero = {0.0}, float low = {-3.4028234663852886e38}, float infinite = {-inf}, float one = {1.0}"
ENDS = ("float[B,S,8] q, float[B,8,T] k, bool[B,S,T] m", "float[B,S,T] y", WEIGHTS)
GUARD = "p = Softmax(b) n = IsNaN(p) y = Where(n, zero, p)"
SAFE = {
    "no mask": "b = MatMul(q, k) ",
    "chosen between finite numbers": "s = MatMul(q, k) w = Where(m, zero, low) b = Add(s, w) ",
    "finite scores by Where": "s = MatMul(q, k) b = Where(m, s, low) ",
}


@pytest.mark.parametrize("body", SAFE.values(), ids=SAFE.keys())
def test_an_idle_guard_goes_and_outputs_stay_equal(body: str) -> None:
    before, after = graph(body + GUARD, *ENDS), graph(body + GUARD, *ENDS)
    assert FuseSoftmaxGuard().apply(after, context()).rewrites == 1
    assert "IsNaN" not in operators(after)
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert_same_outputs(after, before, tolerance=0)
    assert FuseSoftmaxGuard().apply(after, context()).rewrites == 0


@pytest.mark.parametrize(
    "body",
    ["s = MatMul(q, k) w = Where(m, zero, infinite) b = Add(s, w) ", "s = MatMul(q, k) b = Where(m, s, infinite) "],
)
def test_a_guard_against_minus_infinity_stays_with_the_reason(body: str) -> None:
    model = graph(body + GUARD, *ENDS)
    result = FuseSoftmaxGuard().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the mask may be minus infinity, needs finite values"]
    assert operators(model)["IsNaN"] == 1


def test_a_mask_that_comes_from_outside_is_not_trusted() -> None:
    model = graph(
        "s = MatMul(q, k) b = Add(s, w) " + GUARD,
        "float[B,S,8] q, float[B,8,T] k, float[B,S,T] w",
        ENDS[1],
        WEIGHTS,
    )
    assert FuseSoftmaxGuard().apply(model, context()).rewrites == 0


def test_a_guard_with_another_value_is_left_alone_with_the_reason() -> None:
    model = graph("b = MatMul(q, k) " + GUARD.replace("zero", "one"), *ENDS)
    result = FuseSoftmaxGuard().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["NaN becomes 1.0, needs 0"]
