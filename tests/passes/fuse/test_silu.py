from __future__ import annotations

from passes.fuse.silu import FuseSilu
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context

SILU = ("s = Sigmoid(x) y = Mul(s, x)", "float[B,S,8] x", "float[B,S,8] y")
SWIGLU = ("s = Sigmoid(x) m = Mul(x, s) y = Mul(m, z)", "float[B,S,8] x, float[B,S,8] z", "float[B,S,8] y")


def test_silu_becomes_one_operator_with_equal_outputs() -> None:
    before, after = graph(*SILU), graph(*SILU)
    assert FuseSilu().apply(after, context()).patterns[0].found == 1
    assert operators(after) == {"QuickGelu": 1}
    assert_same_outputs(after, before)
    assert FuseSilu().apply(after, context()).rewrites == 0


def test_the_gate_of_swiglu_is_counted_apart() -> None:
    before, after = graph(*SWIGLU), graph(*SWIGLU)
    result = FuseSilu().apply(after, context())
    assert [(pattern.name, pattern.found) for pattern in result.patterns] == [("silu", 0), ("swiglu", 1)]
    assert_same_outputs(after, before)


def test_tensorrt_gets_the_standard_operator() -> None:
    model = graph(*SILU)
    assert FuseSilu().apply(model, context(TENSORRT)).rewrites == 1
    assert operators(model) == {"Swish": 1}
    assert model.opset_imports[""] == 24


def test_a_sigmoid_of_something_else_is_left_alone() -> None:
    model = graph("s = Sigmoid(z) y = Mul(s, x)", SWIGLU[1], SWIGLU[2])
    assert FuseSilu().apply(model, context()).rewrites == 0


def test_a_sigmoid_that_is_a_graph_output_stays_with_the_reason() -> None:
    model = graph(SILU[0], SILU[1], "float[B,S,8] y, float[B,S,8] s")
    result = FuseSilu().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the sigmoid is used elsewhere too"]
    assert operators(model)["Sigmoid"] == 1
