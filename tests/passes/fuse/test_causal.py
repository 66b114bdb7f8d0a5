from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes.clean.fold_constants import FoldConstants
from passes.fuse.attention import FuseAttention
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import CPU, TENSORRT, context

LOW = "float low = {-3.4028234663852886e38}, float zero = {0}, float one = {1}, float scale = {0.25}"
WEIGHTS = (
    f"{LOW}, float infinite = {{-inf}}, bool yes = {{1}}, int64[1] first = {{0}}, int64[1] axis2 = {{0}},"
    " int64[1] axis3 = {1}, int64[1] step = {1}, int64[2] lead = {0, 1}, int64 up = {1}"
)
SQUARE = "n = Shape<start=2, end=3>(q) nn = Concat<axis=0>(n, n) "
TRIANGLE = SQUARE + "o = Expand(one, nn) t = Trilu<upper=0>(o) "
BOOLEANS = SQUARE + "o = Expand(yes, nn) t = Trilu<upper=0>(o) "
SCORES = "kt = Transpose<perm=[0,1,3,2]>(k) s0 = MatMul(q, kt) s = Mul(s0, scale) "
REST = "p = Softmax(a) y = MatMul(p, v)"
ENDS = ("float[B,4,S,16] q, float[B,4,S,16] k, float[B,4,S,16] v", "float[B,4,S,16] y")
SPELLINGS = {
    "as torch writes it": TRIANGLE + "e = Equal(t, zero) w = Where(e, low, zero) " + SCORES + "a = Add(s, w) ",
    "a filled triangle": BOOLEANS + "u = Not(t) " + SCORES + "a = Where(u, infinite, s) ",
    "a kept triangle with leading axes": BOOLEANS + "u = Unsqueeze(t, lead) " + SCORES + "a = Where(u, s, low) ",
    "ones as a condition": TRIANGLE + "e = Equal(t, one) w = Where(e, zero, low) " + SCORES + "a = Add(w, s) ",
    "a constant's corner": (
        "n = Shape<start=2, end=3>(q) r = Slice(table, first, n, axis2, step) c = Slice(r, first, n, axis3, step)"
        " e = Equal(c, zero) " + SCORES + "a = Where(e, infinite, s) "
    ),
}


def build(body: str, weights: str = WEIGHTS) -> ir.Model:
    used = "table" in body
    model = graph(body + REST, *ENDS, weights + (", float[1] table = {0}" if used else ""), opset=23)
    if used:
        table = model.graph.initializers["table"]
        table.const_value = ir.tensor(np.tri(9, dtype=np.float32), name="table")
        table.shape = ir.Shape((9, 9))
    return model


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_exactly_causal_mask_becomes_a_setting_with_equal_outputs(spelling: str) -> None:
    before, after = build(SPELLINGS[spelling]), build(SPELLINGS[spelling])
    result = FuseAttention().apply(after, context())
    assert (result.rewrites, result.notes) == (1, ())
    assert operators(after)["Attention"] == 1
    assert not {"Trilu", "Where", "Slice", "Softmax"} & set(operators(after))
    (attention,) = (node for node in after.graph if node.op_type == "Attention")
    assert attention.attributes.get_int("is_causal", 0) == 1
    assert_same_outputs(after, before)
    assert FuseAttention().apply(after, context()).rewrites == 0


@pytest.mark.parametrize(
    "body",
    [
        SPELLINGS["as torch writes it"].replace("upper=0", "upper=1"),  # attends to what comes
        SPELLINGS["as torch writes it"].replace("Trilu<upper=0>(o)", "Trilu<upper=0>(o, up)"),  # one more
        SPELLINGS["ones as a condition"].replace("Equal(t, one)", "Equal(t, zero)"),  # the other triangle
        SPELLINGS["a kept triangle with leading axes"].replace("Where(u, s, low)", "Where(u, low, s)"),
    ],
)
def test_other_triangles_stay_masks(body: str) -> None:
    before, after = build(body), build(body)
    FuseAttention().apply(after, context())
    assert all(node.attributes.get_int("is_causal", 0) == 0 for node in after.graph if node.op_type == "Attention")
    assert_same_outputs(after, before)


@pytest.mark.parametrize("spelling", ["a = Add(s, single) ", "c = Not(yes2) a = Where(c, low, s) "])
def test_a_mask_of_one_element_that_keeps_all_is_no_triangle(spelling: str) -> None:
    weights = f"{LOW}, float[1,1] single = {{0}}, bool[1,1] yes2 = {{1}}"
    for given in (context(), dataclasses.replace(context(), run=None)):
        model = graph(SCORES + spelling + REST, *ENDS, weights, opset=23)
        FuseAttention().apply(model, given)
        assert not any(node.attributes.get_int("is_causal", 0) for node in model.graph)


def test_a_second_mask_beside_the_triangle_stays_and_so_does_the_triangle() -> None:
    body = SPELLINGS["as torch writes it"].replace("a = Add(s, w)", "b = Add(s, w) a = Add(b, pad)")
    models = [graph(body + REST, f"{ENDS[0]}, float[B,1,1,S] pad", ENDS[1], WEIGHTS, opset=23) for _ in range(2)]
    assert FuseAttention().apply(models[1], context(CPU)).rewrites == 1
    (attention,) = (node for node in models[1].graph if node.op_type == "Attention")
    assert attention.attributes.get_int("is_causal", 0) == 0
    assert attention.inputs[3] is not None
    assert_same_outputs(models[1], models[0])


def test_a_triangle_that_is_a_graph_output_survives() -> None:
    body = SPELLINGS["as torch writes it"] + REST
    before, after = (graph(body, ENDS[0], f"{ENDS[1]}, float[S,S] t", WEIGHTS, opset=23) for _ in range(2))
    assert FuseAttention().apply(after, context()).rewrites == 1
    assert operators(after)["Trilu"] == 1
    assert_same_outputs(after, before)


@pytest.mark.slow
@pytest.mark.tensorrt
def test_tensorrt_builds_a_causal_attention(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build as engine

    ends = [end.replace("float[", "float16[") for end in ENDS]
    body = SPELLINGS["as torch writes it"].replace("Add(s, w)", "Add(s, h)")
    body = body.replace("kt = ", "h = Cast<to=10>(w) sc = Cast<to=10>(scale) kt = ").replace("s0, scale", "s0, sc")
    model = graph(body + REST, ends[0], ends[1], WEIGHTS, opset=23)
    FoldConstants().apply(model, context(TENSORRT))
    result = FuseAttention().apply(model, context(TENSORRT))
    assert (result.rewrites, result.notes) == (1, ())
    assert "Trilu" not in operators(model)
    assert engine(model, tmp_path).path.stat().st_size > 0
