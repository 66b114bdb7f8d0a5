"""Graphs that fusions must leave alone or handle, and never break: every default pass on each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import registry
from passes.base import PassContext
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context, run

EVERYWHERE = TENSORRT.model_copy(update={"attention": ("fp32", "fp16", "bf16")})
CONTEXTS = {"onnxruntime": context(), "tensorrt": context(EVERYWHERE)}


def fuse(model: ir.Model, where: PassContext) -> int:
    """Run the room's default passes; the number of rewrites."""
    return sum(registry.find(name)().apply(model, where).rewrites for name in registry.room_default("fuse"))


GELU = "d = Div({x}, root) e = Erf(d) a = Add(e, one) m = Mul({x}, a) {y} = Mul(m, half)"
WEIGHTS = "float root = {1.4142135}, float half = {0.5}, float one = {1.0}, float[4] w = {1,2,3,4}"

SUBGRAPHS = {
    "If": (
        "s = ReduceMax<keepdims=0>(x) c = Greater(s, one) y = If(c) <"
        f"then_branch = then () => (float[B,4] t) {{ {GELU.format(x='x', y='t')} }},"
        f"else_branch = other () => (float[B,4] u) {{ u = Relu(x) }}>"
    ),
    "Loop": (
        "n = Constant<value = int64 {3}>() k = Constant<value = bool {1}>() y = Loop(n, k, x) <"
        "body = step (int64 i, bool on, float[B,4] v) => (bool o, float[B,4] z)"
        " { o = Identity(on) a = Add(v, w) z = Add(a, a) }>"
    ),
}


@pytest.mark.parametrize("where", CONTEXTS)
@pytest.mark.parametrize("kind", SUBGRAPHS)
def test_sub_graphs_and_what_they_read_survive(kind: str, where: str) -> None:
    before, after = (graph(SUBGRAPHS[kind], "float[B,4] x", "float[B,4] y", WEIGHTS) for _ in range(2))
    fuse(after, CONTEXTS[where])
    assert kind in operators(after)
    assert_same_outputs(after, before)


def test_a_value_that_a_sub_graph_reads_is_not_fused_away() -> None:
    body = (
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"
        " s = ReduceMax<keepdims=0>(x) c = Greater(s, one)"
        " z = If(c) <then_branch = t () => (float[B,4] p) { p = Relu(e) },"
        " else_branch = f () => (float[B,4] q) { q = Neg(e) }>"
    )
    before, after = (graph(body, "float[B,4] x", "float[B,4] y, float[B,4] z", WEIGHTS) for _ in range(2))
    fuse(after, CONTEXTS["onnxruntime"])
    assert operators(after)["Erf"] == 1
    assert_same_outputs(after, before)


@pytest.mark.parametrize("where", CONTEXTS)
def test_functions_are_left_alone(where: str) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        g (float[B,4] x) => (float[B,4] y) { t = mine.twice(x) y = mine.twice(t) }
        <domain: "mine", opset_import: ["" : 20]>
        twice (v) => (r) { s = Sigmoid(v) r = Mul(v, s) }
    """
    before, after = ir.from_onnx_text(text), ir.from_onnx_text(text)
    fuse(after, CONTEXTS[where])
    assert operators(after) == {"twice": 2}
    assert_same_outputs(after, before)


def test_operators_of_other_domains_are_no_pattern() -> None:
    body = "s = com.microsoft.QuickGelu(x) t = Sigmoid(s) y = Mul(x, t)"
    before, after = (graph(body, "float[B,4] x", "float[B,4] y", WEIGHTS) for _ in range(2))
    assert fuse(after, CONTEXTS["onnxruntime"]) == 0
    assert_same_outputs(after, before)


def test_a_graph_without_shapes_keeps_its_meaning() -> None:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[N] x) => (float y) <{WEIGHTS}> '
    text += "{ s = Reshape(x, t) " + GELU.format(x="s", y="g") + " y = ReduceSum<keepdims=0>(g) }"
    text = text.replace("float[4] w = {1,2,3,4}", "int64[2] t = {2, -1}").replace("float[N] x", "float[8] x")
    before, after = ir.from_onnx_text(text), ir.from_onnx_text(text)
    assert fuse(after, CONTEXTS["onnxruntime"]) == 1
    assert_same_outputs(after, before)


def test_an_initializer_that_is_also_an_input_is_no_constant() -> None:
    body = "p = MatMul(x, v) y = Add(p, b)"
    model = graph(body, "float[B,4] x, float[4,4] v, float[4] b", "float[B,4] y")
    for name in ("v", "b"):
        value = next(value for value in model.graph.inputs if value.name == name)
        value.const_value = ir.tensor(np.ones(value.shape.numpy(), np.float32), name=name)  # type: ignore[union-attr]
        model.graph.initializers[name] = value
    assert fuse(model, CONTEXTS["onnxruntime"]) == 0
    feeds = {name: np.full(shape, 2, np.float32) for name, shape in (("x", (2, 4)), ("v", (4, 4)), ("b", (4,)))}
    np.testing.assert_allclose(run(model, feeds)["y"], np.full((2, 4), 18))


UNARY = ("Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Identity", "Softmax")
SCALED, NUMBERS = ("Mul", "Add"), ("half", "one")
BINARY = ("Add", "Mul", "Sub", "MatMul")


@st.composite
def graphs(draw: Any) -> str:
    """Random graphs over (4, 4) values in which pieces of the patterns turn up by chance and on purpose."""
    values = ["x", "z"]
    lines = []
    for index in range(draw(st.integers(2, 14))):
        name, pick = f"v{index}", st.sampled_from(values)
        kind = draw(
            st.sampled_from(("unary", "binary", "scalar", "turn", "norm", "gelu", "silu", "attention", "bias"))
        )
        a, b = draw(pick), draw(pick)
        lines += {
            "unary": [f"{name} = {draw(st.sampled_from(UNARY))}({a})"],
            "binary": [f"{name} = {draw(st.sampled_from(BINARY))}({a}, {b})"],
            "scalar": [f"{name} = {draw(st.sampled_from(SCALED))}({a}, {draw(st.sampled_from(NUMBERS))})"],
            "turn": [f"{name} = Transpose<perm=[{draw(st.sampled_from(('0,1', '1,0')))}]>({a})"],
            "norm": [f"{name}s = Add({a}, {b})", f"{name} = LayerNormalization({name}s, row)"],
            "gelu": [
                f"{name}d = Div({a}, root)", f"{name}e = Erf({name}d)", f"{name}a = Add({name}e, one)",
                f"{name}m = Mul({draw(pick)}, {name}a)", f"{name} = Mul({name}m, half)",
            ],
            "silu": [f"{name}s = Sigmoid({a})", f"{name} = Mul({b}, {name}s)"],
            "attention": [
                f"{name}t = Transpose<perm=[1,0]>({a})", f"{name}s = MatMul({b}, {name}t)",
                f"{name}p = Softmax({name}s)", f"{name} = MatMul({name}p, {a})",
            ],
            "bias": [f"{name}p = MatMul({a}, square)", f"{name} = Add({name}p, row)"],
        }[kind]  # fmt: skip
        lines.append(f"n{index} = LpNormalization({name})")
        values += [f"n{index}", *[line.split(" = ")[0] for line in lines[-3:-1]]]
    outputs = draw(st.lists(st.sampled_from(values[2:]), min_size=1, max_size=3, unique=True))
    ends = ", ".join(f"float[4,4] {name}" for name in outputs)
    weights = "float half = {0.5}, float one = {1.0}, float root = {1.4142135}, float[4] row = {1,-2,3,0.5}"
    weights += ", float[4,4] square = {1,2,3,4,-1,2,0,1,2,2,1,0,0,1,-3,1}"
    return (
        '<ir_version: 10, opset_import: ["" : 20]> '
        f"g (float[4,4] x, float[4,4] z) => ({ends}) <{weights}> {{ {' '.join(lines)} }}"
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(text=graphs(), where=st.sampled_from(sorted(CONTEXTS)))
def test_random_graphs_give_equal_outputs_before_and_after_every_pass(text: str, where: str) -> None:
    before, after = ir.from_onnx_text(text), ir.from_onnx_text(text)
    names = [value.name for value in before.graph.outputs]
    for name in registry.room_default("fuse"):
        registry.find(name)().apply(after, CONTEXTS[where])
        assert [value.name for value in after.graph.outputs] == names
        # Errors of the single rewrites add up along a chain, hence four steps of slack.
        assert_same_outputs(after, before, tolerance=2.0**-12)


def test_a_branch_that_gives_a_sequence_keeps_its_type() -> None:
    body = (
        "s = ReduceMax<keepdims=0>(x) c = Greater(s, one) q = If(c) <"
        "then_branch = then () => (seq(float[B,4]) t) { t = SequenceConstruct(x) },"
        "else_branch = other () => (seq(float[B,4]) u) { r = Relu(x) u = SequenceConstruct(r) }>"
        " i = Constant<value = int64 {0}>() y = SequenceAt(q, i)"
    )
    before, after = (graph(body, "float[B,4] x", "float[B,4] y", WEIGHTS) for _ in range(2))
    fuse(after, CONTEXTS["onnxruntime"])
    assert_same_outputs(after, before)
