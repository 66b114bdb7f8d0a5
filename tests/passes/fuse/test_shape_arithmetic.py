from __future__ import annotations

import pytest

from passes.fuse.shape_arithmetic import FuseShapeArithmetic
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = (
    "int64[1] minus = {-1}, int64[1] four = {4}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2},"
    " int64[1] end = {9223372036854775807}, int64 first = {0}"
)
TARGETS = {
    "Shape with start and end": (
        "b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x)"
        " t = Concat<axis=0>(b, s, minus, four) y = Reshape(x, t)"
    ),
    "Slice": "h = Shape(x) s = Slice(h, zero, two) t = Concat<axis=0>(s, two, four) y = Reshape(x, t)",
    "Gather and Unsqueeze": (
        "h = Shape(x) g = Gather(h, first) b = Unsqueeze(g, zero) s = Shape<start=1, end=2>(x)"
        " t = Concat<axis=0>(b, s, two, four) y = Reshape(x, t)"
    ),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_spelled_out_target_becomes_a_constant(target: str) -> None:
    ends = ("float[B,S,8] x", "float[B,S,2,4] y", WEIGHTS)
    before, after = graph(TARGETS[target], *ends), graph(TARGETS[target], *ends)
    assert FuseShapeArithmetic().apply(after, context()).patterns[0].found == 1
    assert operators(after) == {"Reshape": 1}
    assert_same_outputs(after, before)
    assert FuseShapeArithmetic().apply(after, context()).rewrites == 0


def test_a_known_size_becomes_a_constant() -> None:
    body = "h = Shape(x) l = Slice(h, minus, end) c = Cast<to=1>(l) y = Mul(x, c)"
    ends = ("float[B,S,8] x", "float[B,S,8] y", WEIGHTS)
    before, after = graph(body, *ends), graph(body, *ends)
    assert FuseShapeArithmetic().apply(after, context()).patterns[1].found == 1
    assert operators(after) == {"Cast": 1, "Mul": 1}
    assert_same_outputs(after, before)


def test_a_target_that_swaps_two_dynamic_dimensions_is_left_alone_with_the_reason() -> None:
    body = (
        "b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x) t = Concat<axis=0>(s, b, two, four)"
        " y = Reshape(x, t)"
    )
    before, after = (graph(body, "float[B,S,8] x", "float[S,B,2,4] y", WEIGHTS) for _ in range(2))
    result = FuseShapeArithmetic().apply(after, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["two dimensions are neither known nor the input's own"]
    assert_same_outputs(after, before)


def test_a_shape_that_is_a_graph_output_survives() -> None:
    outputs = "float[B,S,2,4] y, int64[4] t"
    before, after = (graph(TARGETS["Slice"], "float[B,S,8] x", outputs, WEIGHTS) for _ in range(2))
    FuseShapeArithmetic().apply(after, context())
    assert_same_outputs(after, before)


def test_a_slice_whose_bounds_are_attributes_is_left_alone() -> None:
    body = "s = Slice<axes=[0], starts=[0], ends=[1]>(x) y = Squeeze<axes=[0]>(s)"
    model = graph(body, "float[1,4] x", "float[4] y", opset=6)
    assert FuseShapeArithmetic().apply(model, context()).rewrites == 0
