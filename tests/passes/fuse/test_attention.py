from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from passes.fuse.attention import FuseAttention
from tests.support.runner import TENSORRT, context, run

HEADER = '<ir_version: 10, opset_import: ["" : 20]> '
WEIGHTS = """
  <float[1] scale = {0.25}, float[1] zero = {0.0}, float[1] low = {-3.4028234663852886e38},
   float[1] infinite = {-inf}, int64[4] heads = {0, 0, 4, 16}, int64[3] merge = {0, 0, 64},
   int64[1] two = {2}, int64[5] repeat = {1, 1, 1, 2, 1}, int64[4] grouped = {0, 4, -1, 16}>
"""


def model(body: str, inputs: str, outputs: str = "float[B,4,S,16] y") -> ir.Model:
    return ir.from_onnx_text(f"{HEADER} g ({inputs}) => ({outputs}) {WEIGHTS.strip()} {{ {body} }}")


QKV = "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v"
PLAIN = "t = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, t) {} p = Softmax({}) y = MatMul(p, v)"

SPELLINGS = {
    "no mask, scale on the scores": (PLAIN.format("a = Mul(s, scale)", "a"), QKV),
    "no scale": (PLAIN.format("", "s"), QKV),
    "scale as a division": (PLAIN.format("a = Div(s, scale)", "a"), QKV),
    "scale on query and key": (
        "t = Transpose<perm=[0,1,3,2]>(k) tt = Mul(t, scale) qq = Mul(scale, q) s = MatMul(qq, tt)"
        " p = Softmax<axis=3>(s) y = MatMul(p, v)",
        QKV,
    ),
    "additive mask": (PLAIN.format("a = Mul(s, scale) b = Add(a, mask)", "b"), QKV + ", float[B,1,S,T] mask"),
    "mask first": (PLAIN.format("a = Mul(s, scale) b = Add(mask, a)", "b"), QKV + ", float[B,1,S,T] mask"),
    "mask without query tokens": (PLAIN.format("b = Add(s, mask)", "b"), QKV + ", float[B,1,1,T] mask"),
    "two masks": (
        PLAIN.format("b = Add(s, bias) c = Add(b, mask)", "c"),
        QKV + ", float[1,4,S,T] bias, float[B,1,1,T] mask",
    ),
    "boolean mask by Where on the scores": (
        PLAIN.format("b = Where(m, s, low)", "b"),
        QKV + ", bool[B,1,1,T] m",
    ),
    "padding mask by Where into the sum": (
        PLAIN.format("w = Where(m, zero, low) b = Add(s, w)", "b"),
        QKV + ", bool[B,1,S,T] m",
    ),
    "NaN guard": (
        "t = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, t) w = Where(m, zero, infinite) b = Add(s, w)"
        " p = Softmax(b) n = IsNaN(p) g = Where(n, zero, p) y = MatMul(g, v)",
        QKV + ", bool[B,1,S,T] m",
    ),
    "key with heads last": (
        "t = Transpose<perm=[0,2,3,1]>(k) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)",
        "float[B,4,S,16] q, float[B,T,4,16] k, float[B,4,T,16] v",
    ),
    "key already transposed": (
        "s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v)",
        "float[B,4,S,16] q, float[B,4,16,T] k, float[B,4,T,16] v",
    ),
    "capped scores": (
        PLAIN.format("a = Mul(s, scale) c = Div(a, cap) h = Tanh(c) b = Mul(h, cap)", "b"),
        QKV + ", float[B,1,S,T] unused",
    ),
    "grouped heads": (
        "ku = Unsqueeze(k, two) ke = Expand(ku, times) kr = Reshape(ke, grouped)"
        " vu = Unsqueeze(v, two) ve = Expand(vu, times) vr = Reshape(ve, grouped)"
        " t = Transpose<perm=[0,1,3,2]>(kr) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, vr)",
        "float[B,4,S,16] q, float[B,2,T,16] k, float[B,2,T,16] v",
    ),
}


def build(name: str) -> ir.Model:
    body, inputs = SPELLINGS[name]
    found = f"{HEADER} g ({inputs}) => (float[B,4,S,16] y) {WEIGHTS.strip()} {{ {body} }}"
    found = found.replace("int64[1] two", "float[1] cap = {5.0}, int64[5] times = {1,1,2,1,1}, int64[1] two")
    return ir.from_onnx_text(found)


def feeds(graph: ir.Model, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    sizes = {"B": 3, "S": 5, "T": 7}
    rng = np.random.default_rng(seed)
    found = {}
    for value in graph.graph.inputs:
        assert value.shape is not None
        shape = [size if isinstance(size, int) else sizes[str(size.value)] for size in value.shape]
        if value.dtype == ir.DataType.BOOL:
            array = rng.integers(0, 2, shape).astype(bool)
            array[0], array[-1] = True, False
        else:
            array = rng.standard_normal(shape).astype(np.float32)
        found[str(value.name)] = array
    return found


def operators(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_one_attention_with_equal_outputs(name: str) -> None:
    before, after = build(name), build(name)
    result = FuseAttention().apply(after, context())
    assert (result.rewrites, result.notes) == (1, ())
    assert operators(after)["Attention"] == 1
    assert not {"Softmax", "MatMul", "IsNaN"} & set(operators(after))
    inputs = feeds(before)
    np.testing.assert_allclose(
        run(after, inputs)["y"],
        run(before, inputs)["y"],
        rtol=2**-14,  # float32 keeps 24 significant bits; the sums run in another order
        atol=2**-14,
    )


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_second_run_changes_nothing(name: str) -> None:
    graph = build(name)
    FuseAttention().apply(graph, context())
    nodes = [(node.op_type, node.name) for node in graph.graph]
    assert FuseAttention().apply(graph, context()).rewrites == 0
    assert [(node.op_type, node.name) for node in graph.graph] == nodes


LOOK_ALIKES = {
    "Softmax axis is 2, needs last": (PLAIN.replace("Softmax", "Softmax<axis=2>").format("", "s"), QKV),
    "scores are scaled after the mask is added, needs before": (
        PLAIN.format("b = Add(s, mask) a = Mul(b, scale)", "a"),
        QKV + ", float[B,1,S,T] mask",
    ),
    "masked scores become 0, needs -10000 or less": (
        PLAIN.format("b = Where(m, s, zero)", "b"),
        QKV + ", bool[B,1,S,T] m",
    ),
    "query, key and value have ranks 3, 3, 4, need 4 (batch, heads, tokens, head_dim)"
    " or 3 (batch, tokens, head_dim)": (
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)",
        "float[B,S,16] q, float[B,T,16] k, float[B,B,T,16] v",
    ),
    "the mask has rank 1, needs 2 or 3 as query and key have 3": (
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) a = Add(s, mask) p = Softmax(a) y = MatMul(p, v)",
        "float[B,S,16] q, float[B,T,16] k, float[B,T,16] v, float[T] mask",
    ),
}


LOOK_ALIKE_OUTPUTS = {"query": "float[B,B,S,16] y", "the m": "float[B,S,16] y"}


@pytest.mark.parametrize("reason", LOOK_ALIKES)
def test_a_look_alike_is_left_alone_with_the_reason(reason: str) -> None:
    body, inputs = LOOK_ALIKES[reason]
    graph = model(body, inputs, LOOK_ALIKE_OUTPUTS.get(reason[:5], "float[B,4,S,16] y"))
    before = operators(graph)
    result = FuseAttention().apply(graph, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == [reason]
    assert operators(graph) == before


def test_scores_that_are_a_graph_output_stay() -> None:
    graph = model(PLAIN.format("", "s"), QKV, "float[B,4,S,16] y, float[B,4,S,T] s")
    result = FuseAttention().apply(graph, context())
    assert result.rewrites == 0
    assert "also a graph output" in result.patterns[0].near_misses[0].reason


def test_weights_that_are_a_graph_output_stay() -> None:
    graph = model(PLAIN.format("", "s"), QKV, "float[B,4,S,16] y, float[B,4,S,T] p")
    result = FuseAttention().apply(graph, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert (result.rewrites, reasons) == (0, ["the attention weights behind the softmax are used elsewhere too"])
    assert operators(graph)["Softmax"] == 1


def test_a_softmax_over_a_constant_product_is_a_classifier_and_no_near_miss() -> None:
    text = f"{HEADER} g (float[B,2] x) => (float[B,2] y) <float[2,2] w = {{1,2,3,4}}> "
    graph = ir.from_onnx_text(text + "{ s = MatMul(x, w) y = Softmax(s) }")
    assert FuseAttention().apply(graph, context()).patterns[0].near_misses == ()


def test_transposes_around_three_dimensional_projections_vanish() -> None:
    split = "{0}s = Reshape({0}, heads) {0}h = Transpose<perm=[0,2,1,3]>({0}s) "
    body = "".join(split.format(name) for name in "qkv")
    body += "t = Transpose<perm=[0,1,3,2]>(kh) s = MatMul(qh, t) p = Softmax(s) o = MatMul(p, vh) "
    body += "r = Transpose<perm=[0,2,1,3]>(o) y = Reshape(r, merge)"
    inputs = "float[B,S,64] q, float[B,T,64] k, float[B,T,64] v"
    before, after = model(body, inputs, "float[B,S,64] y"), model(body, inputs, "float[B,S,64] y")
    assert FuseAttention().apply(after, context()).rewrites == 1
    assert operators(after) == {"Attention": 1}
    np.testing.assert_allclose(run(after, feeds(before))["y"], run(before, feeds(before))["y"], atol=2**-14)


def test_a_target_without_the_precision_keeps_the_plain_form() -> None:
    graph = build("additive mask")
    result = FuseAttention().apply(graph, context(TENSORRT))
    assert result.rewrites == 0
    assert (
        "TensorRT has no fused attention in fp32 (it has: fp16, bf16)" in result.patterns[0].near_misses[0].reason
    )


def test_the_output_keeps_its_name_and_inputs_their_order() -> None:
    graph = build("two masks")
    names = [value.name for value in graph.graph.inputs]
    FuseAttention().apply(graph, context())
    assert [value.name for value in graph.graph.inputs] == names
    assert [value.name for value in graph.graph.outputs] == ["y"]


def test_a_cache_in_front_of_the_keys_stays_and_the_attention_behind_it_fuses() -> None:
    body = "k = Concat<axis=2>(pk, nk) v = Concat<axis=2>(pv, nv) " + PLAIN.format("a = Mul(s, scale)", "a")
    inputs = "float[B,4,S,16] q, float[B,4,T,16] pk, float[B,4,S,16] nk, float[B,4,T,16] pv, float[B,4,S,16] nv"
    outputs = "float[B,4,S,16] y, float[B,4,C,16] k, float[B,4,C,16] v"
    before, after = model(body, inputs, outputs), model(body, inputs, outputs)
    assert FuseAttention().apply(after, context()).rewrites == 1
    assert operators(after) == {"Concat": 2, "Attention": 1}
    old, new = run(before, feeds(before)), run(after, feeds(before))
    for name in old:
        np.testing.assert_allclose(new[name], old[name], atol=2**-14)


def test_packed_projections_fuse() -> None:
    body = (
        "r = Reshape(x, five) t = Transpose<perm=[2,0,3,1,4]>(r) qq, kk, vv = Split<axis=0, num_outputs=3>(t)"
        " qs = Squeeze(qq, axis) ks = Squeeze(kk, axis) vs = Squeeze(vv, axis) kt = Transpose<perm=[0,1,3,2]>(ks)"
        " s = MatMul(qs, kt) p = Softmax(s) y = MatMul(p, vs)"
    )
    text = f"{HEADER} g (float[B,S,192] x) => (float[B,4,S,16] y) "
    text += f"<int64[5] five = {{0, 0, 3, 4, 16}}, int64[1] axis = {{0}}> {{ {body} }}"
    before, after = ir.from_onnx_text(text), ir.from_onnx_text(text)
    assert FuseAttention().apply(after, context()).rewrites == 1
    np.testing.assert_allclose(run(after, feeds(before))["y"], run(before, feeds(before))["y"], atol=2**-14)


def test_scores_in_half_precision_widened_around_the_softmax_fuse_for_tensorrt() -> None:
    body = "t = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, t) w = Cast<to=1>(s) p = Softmax(w) h = Cast<to=10>(p)"
    graph = model(body + " y = MatMul(h, v)", QKV.replace("float[", "float16["), "float16[B,4,S,16] y")
    result = FuseAttention().apply(graph, context(TENSORRT))
    assert (result.rewrites, result.notes) == (1, ())
    attention = graph.graph[0]
    assert attention.attributes.get_int("softmax_precision", 0) == 1


THREE = "float[B,S,16] q, float[B,T,16] k, float[B,T,16] v"
WITHOUT_HEADS = {
    "plain": (PLAIN.replace("[0,1,3,2]", "[0,2,1]").format("a = Mul(s, scale)", "a"), THREE),
    "key already transposed": (
        "s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v)",
        "float[B,S,16] q, float[B,16,T] k, float[B,T,16] v",
    ),
    "mask per row": (
        PLAIN.replace("[0,1,3,2]", "[0,2,1]").format("a = Add(s, mask)", "a"),
        THREE + ", float[B,1,T] mask",
    ),
    "mask per query": (
        PLAIN.replace("[0,1,3,2]", "[0,2,1]").format("a = Where(m, s, low)", "a"),
        THREE + ", bool[S,T] m",
    ),
    "two masks": (
        PLAIN.replace("[0,1,3,2]", "[0,2,1]").format("b = Add(s, bias) a = Add(b, mask)", "a"),
        THREE + ", float[S,T] bias, float[B,1,T] mask",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_HEADS)
def test_attention_without_an_axis_of_heads_fuses_with_one_head(name: str) -> None:
    body, inputs = WITHOUT_HEADS[name]
    before, after = model(body, inputs, "float[B,S,16] y"), model(body, inputs, "float[B,S,16] y")
    result = FuseAttention().apply(after, context())
    assert (result.rewrites, result.notes) == (1, ())
    assert not {"Softmax", "MatMul"} & set(operators(after))
    np.testing.assert_allclose(run(after, feeds(before))["y"], run(before, feeds(before))["y"], atol=2**-14)
    assert FuseAttention().apply(after, context()).rewrites == 0
