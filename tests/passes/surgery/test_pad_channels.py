from __future__ import annotations

import pytest

from passes.surgery.pad_channels import PadChannels
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = "float[2,3,1,2] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}, float[2] b = {1,-1}"
ENDS = ("float[B,3,S,6] x", "float[B,2,S,5] y", WEIGHTS)


@pytest.mark.parametrize(("multiple", "channels"), [(4, 4), (8, 8)])
def test_three_channels_become_a_multiple(multiple: int, channels: int) -> None:
    before, after = (graph("y = Conv(x, w, b)", *ENDS) for _ in range(2))
    assert PadChannels(multiple=multiple).apply(after, context()).rewrites == 1
    assert operators(after) == {"Pad": 1, "Conv": 1}
    weight = next(node for node in after.graph if node.op_type == "Conv").inputs[1]
    assert weight is not None
    assert list(weight.shape or ()) == [2, channels, 1, 2]
    assert_same_outputs(after, before)
    assert PadChannels(multiple=multiple).apply(after, context()).rewrites == 0


def test_strides_and_pads_stay_as_they_are() -> None:
    body = "y = Conv<strides = [1, 2], pads = [0, 1, 0, 1]>(x, w, b)"
    ends = (ENDS[0], "float[B,2,S,4] y", WEIGHTS)
    before, after = graph(body, *ends), graph(body, *ends)
    assert PadChannels().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)


def test_a_multiple_and_many_channels_are_left_without_a_word() -> None:
    for options in ({"multiple": 3}, {"most_channels": 2}):
        model = graph("y = Conv(x, w, b)", *ENDS)
        result = PadChannels(**options).apply(model, context())
        assert result.rewrites == 0
        assert result.patterns[0].near_misses == ()


def test_groups_are_refused_with_the_reason() -> None:
    model = graph("y = Conv<group = 2>(x, w, b)", "float[B,6,S,6] x", "float[B,2,S,5] y", WEIGHTS)
    result = PadChannels().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the convolution has 2 groups, needs 1"]


def test_a_weight_that_is_an_input_stays() -> None:
    model = graph("y = Conv(x, w)", "float[B,3,S,6] x, float[2,3,1,2] w", "float[B,2,S,5] y")
    result = PadChannels().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the weight is no constant, or a large one"]


def test_outputs_and_shared_values_survive() -> None:
    body = "y = Conv(x, w, b) z = Relu(y) v = Conv(x, w)"
    ends = (ENDS[0], "float[B,2,S,5] y, float[B,2,S,5] z, float[B,2,S,5] v", WEIGHTS)
    before, after = graph(body, *ends), graph(body, *ends)
    assert PadChannels().apply(after, context()).rewrites == 2
    assert operators(after) == {"Pad": 1, "Conv": 2, "Relu": 1}
    assert_same_outputs(after, before)
