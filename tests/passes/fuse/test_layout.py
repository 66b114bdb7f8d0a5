from __future__ import annotations

import pytest

from passes.fuse.layout import FuseLayout
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = "int64[2] flat = {-1, 8}, int64[3] back = {3, -1, 8}, int64[3] copy = {0, -1, 8}, int64[1] axis = {1}"
CASES = {
    "two turns that undo each other": (
        "a = Transpose<perm=[0,2,1]>(x) b = Transpose<perm=[0,2,1]>(a) y = Relu(b)",
        {"Relu": 1},
    ),
    "two turns that make one": (
        "a = Transpose<perm=[0,2,1]>(x) y = Transpose<perm=[2,1,0]>(a)",
        {"Transpose": 1},
    ),
    "no turn": ("a = Transpose<perm=[0,1,2]>(x) y = Relu(a)", {"Relu": 1}),
    "two reshapes": ("a = Reshape(x, flat) b = Reshape(a, back) y = Relu(b)", {"Reshape": 1, "Relu": 1}),
    "squeeze of unsqueeze": ("a = Unsqueeze(x, axis) b = Squeeze(a, axis) y = Relu(b)", {"Relu": 1}),
    "an output keeps its name": ("a = Unsqueeze(x, axis) y = Squeeze(a, axis)", {"Identity": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_pairs_cancel_with_equal_outputs(case: str) -> None:
    body, left = CASES[case]
    ends = ("float[B,S,8] x", "float[S,8,B] y" if "make one" in case else "float[B,S,8] y", WEIGHTS)
    before, after = graph(body, *ends), graph(body, *ends)
    assert FuseLayout().apply(after, context()).rewrites >= 1
    assert operators(after) == left
    assert_same_outputs(after, before)
    assert FuseLayout().apply(after, context()).rewrites == 0


def test_a_target_that_copies_a_dimension_of_the_first_reshape_is_left_alone() -> None:
    body = "a = Reshape(x, flat) y = Reshape(a, copy)"
    before, after = (graph(body, "float[B,S,8] x", "float[R,1,8] y", WEIGHTS) for _ in range(2))
    assert FuseLayout().apply(after, context()).rewrites == 0
    assert_same_outputs(after, before)


def test_a_turned_value_that_is_a_graph_output_survives() -> None:
    body = CASES["two turns that undo each other"][0]
    outputs = "float[B,S,8] y, float[B,8,S] a"
    before, after = (graph(body, "float[B,S,8] x", outputs) for _ in range(2))
    assert FuseLayout().apply(after, context()).rewrites == 1
    assert operators(after) == {"Transpose": 1, "Relu": 1}
    assert_same_outputs(after, before)
