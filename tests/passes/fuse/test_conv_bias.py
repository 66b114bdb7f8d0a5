from __future__ import annotations

import pytest

from passes.fuse.conv_bias import FuseConvBias
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = (
    "float[2,2,1,1] w = {1,2,3,4}, float[2] cb = {5,6}, float[1,2,1,1] four = {1,-1}, float[2,1,1] three = {1,-1},"
    " float one = {3.0}, float[2] row = {1,2}"
)
ENDS = ("float[B,2,S,2] x", "float[B,2,S,2] y", WEIGHTS)


@pytest.mark.parametrize("bias", ["four", "three", "one"])
@pytest.mark.parametrize("conv", ["c = Conv(x, w)", "c = Conv(x, w, cb)"])
def test_an_added_bias_goes_into_the_convolution(conv: str, bias: str) -> None:
    body = f"{conv} y = Add(c, {bias})"
    before, after = graph(body, *ENDS), graph(body, *ENDS)
    assert FuseConvBias().apply(after, context()).patterns[0].found == 1
    assert operators(after) == {"Conv": 1}
    assert_same_outputs(after, before)
    assert FuseConvBias().apply(after, context()).rewrites == 0


def test_the_activation_behind_it_stays_and_is_counted() -> None:
    body = "c = Conv(x, w) a = Add(three, c) y = Relu(a)"
    before, after = graph(body, *ENDS), graph(body, *ENDS)
    result = FuseConvBias().apply(after, context())
    assert [(pattern.name, pattern.found) for pattern in result.patterns] == [
        ("conv_bias", 0),
        ("conv_bias_activation", 1),
    ]
    assert operators(after) == {"Conv": 1, "Relu": 1}
    assert_same_outputs(after, before)


def test_a_row_along_the_width_is_no_bias() -> None:
    model = graph("c = Conv(x, w) y = Add(c, row)", *ENDS)
    result = FuseConvBias().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the addend has shape [2], needs one number per channel"]


def test_a_convolution_that_is_a_graph_output_stays() -> None:
    model = graph("c = Conv(x, w) y = Add(c, three)", ENDS[0], "float[B,2,S,2] y, float[B,2,S,2] c", WEIGHTS)
    assert FuseConvBias().apply(model, context()).rewrites == 0
    assert operators(model) == {"Conv": 1, "Add": 1}
