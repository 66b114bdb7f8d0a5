from __future__ import annotations

import pytest

from passes.fuse.conv_batch_norm import FuseConvBatchNorm
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = (
    "float[2,2,1,1] w = {1,2,3,4}, float[2,1,1,1] depth = {3,4}, float[2] cb = {5,6}, float[2] s = {0.5,2},"
    " float[2] b = {1,-1}, float[2] mean = {0.3,0.1}, float[2] var = {0.7,1.9}"
)
NORM = " y = BatchNormalization(c, s, b, mean, var)"
ENDS = ("float[B,2,S,T] x", "float[B,2,S,T] y", WEIGHTS)


@pytest.mark.parametrize(
    "conv",
    ["c = Conv(x, w)", "c = Conv(x, w, cb)", "c = Conv<group=2>(x, depth, cb)", "c = ConvTranspose(x, w, cb)"],
)
def test_the_norm_folds_into_the_weights_with_equal_outputs(conv: str) -> None:
    before, after = graph(conv + NORM, *ENDS), graph(conv + NORM, *ENDS)
    assert FuseConvBatchNorm().apply(after, context()).rewrites == 1
    assert sum(operators(after).values()) == 1
    assert_same_outputs(after, before)
    assert FuseConvBatchNorm().apply(after, context()).rewrites == 0


def test_a_weight_shared_by_two_convolutions_keeps_its_value_for_the_other() -> None:
    body = "c = Conv(x, w)" + NORM + " z = Conv(x, w)"
    outputs = "float[B,2,S,T] y, float[B,2,S,T] z"
    before, after = graph(body, ENDS[0], outputs, WEIGHTS), graph(body, ENDS[0], outputs, WEIGHTS)
    assert FuseConvBatchNorm().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)


def test_a_convolution_that_is_a_graph_output_stays_with_the_reason() -> None:
    model = graph("c = Conv(x, w)" + NORM, ENDS[0], "float[B,2,S,T] y, float[B,2,S,T] c", WEIGHTS)
    result = FuseConvBatchNorm().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == [
        "the convolution's output is used elsewhere too"
    ]
    assert operators(model)["BatchNormalization"] == 1


def test_weights_from_outside_are_left_alone_with_the_reason() -> None:
    model = graph("c = Conv(x, z)" + NORM, "float[B,2,S,T] x, float[2,2,1,1] z", ENDS[1], WEIGHTS)
    result = FuseConvBatchNorm().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == [
        "the convolution's weights are not constant"
    ]
