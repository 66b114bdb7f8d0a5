from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes.surgery.stacked_heads import StackedHeads
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context
from tests.support.tensorrt_rtx.building import build

CUT = "{0}r = Reshape({0}a, shape) {0} = Transpose<perm = [0, 2, 1, 3]>({0}r) "
HEADS = "{0}m = MatMul(x, w{0}) {0}a = Add({0}m, b{0}) " + CUT
ATTEND = "t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)"
BODY = "".join(HEADS.format(name) for name in "qkv") + ATTEND
ENDS = ("float[2,5,8] x", "float[2,4,5,4] y")
SHAPE = "int64[4] shape = {2, 5, 4, 4}"


def attention(
    body: str = BODY, ends: tuple[str, str] = ENDS, dtype: type[np.generic] = np.float32, turned: bool = False
) -> ir.Model:
    """Four heads of size 4 from a width of 8; weights drawn from a fixed seed."""
    model = graph(body, *ends, SHAPE)
    rng = np.random.default_rng(3)
    for name in [f"{kind}{which}" for which in "qkv" for kind in "wb"]:
        shape = (16,) if name[0] == "b" else (16, 8) if turned else (8, 16)
        found = [value for node in model.graph for value in node.inputs if value is not None and value.name == name]
        tensor = ir.tensor(rng.standard_normal(shape).astype(dtype), name=name)
        if not found or found[0].is_graph_input():
            continue
        found[0].const_value, found[0].dtype, found[0].shape = tensor, tensor.dtype, tensor.shape
        model.graph.initializers[name] = found[0]
    return model


def test_three_products_cut_into_heads_become_one() -> None:
    before, after = attention(), attention()
    assert StackedHeads().apply(after, context()).rewrites == 1
    assert operators(after) == {"MatMul": 3, "Add": 1, "Reshape": 1, "Transpose": 2, "Split": 1, "Softmax": 1}
    assert_same_outputs(after, before)
    assert StackedHeads().apply(after, context()).rewrites == 0


@pytest.mark.parametrize(("factor", "left"), [("0.25", 0), ("-0.5", 1), ("0.3", 1)])
def test_a_query_times_a_power_of_two_is_scaled_by_its_weights(factor: str, left: int) -> None:
    body = BODY.replace(
        "s = MatMul(q, t)", f"f = Constant<value_float = {factor}>() u = Mul(q, f) s = MatMul(u, t)"
    )
    before, after = attention(body), attention(body)
    assert StackedHeads().apply(after, context()).rewrites == 1
    assert operators(after)["Mul"] == left
    assert_same_outputs(after, before)


@pytest.mark.parametrize("shape", ["{2, 5, 4, -1}", "{0, 0, -1, 4}", "{-1, 5, 4, 4}"])
def test_sizes_left_to_the_reshape_are_found(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SHAPE", f"int64[4] shape = {shape}")
    before, after = attention(), attention()
    assert StackedHeads().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)


@pytest.mark.parametrize("turned", [False, True])
def test_products_spelt_as_gemm_become_one_gemm(turned: bool) -> None:
    heads = f"{{0}}a = Gemm<transB = {turned:d}>(x, w{{0}}, b{{0}}) {CUT}"
    body = "".join(heads.format(name) for name in "qkv") + ATTEND
    ends = ("float[10,8] x", ENDS[1])
    before, after = (attention(body, ends, turned=turned) for _ in range(2))
    assert StackedHeads().apply(after, context()).rewrites == 1
    assert operators(after)["Gemm"] == 1
    assert_same_outputs(after, before)


@pytest.mark.parametrize(
    ("old", "new", "outputs"),
    [
        ("k = Transpose<perm = [0, 2, 1, 3]>", "k = Transpose<perm = [0, 2, 3, 1]>", "float[2,4,A,B] y"),
        ("vm = MatMul(x, wv)", "n = Neg(x) vm = MatMul(n, wv)", ENDS[1]),
        ("vr = Reshape(va, shape)", "z = Relu(va) vr = Reshape(va, shape)", f"{ENDS[1]}, float[2,5,16] z"),
    ],
)
def test_a_look_alike_is_refused_with_the_reason(old: str, new: str, outputs: str) -> None:
    body = BODY.replace(old, new)
    if "[0, 2, 3, 1]" in new:
        body = body.replace("t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, t)", "s = MatMul(q, k)")
    model = attention(body, (ENDS[0], outputs))
    result = StackedHeads().apply(model, context())
    assert result.rewrites == 0
    assert "2 products of one value are cut into heads, needs 3" in [
        miss.reason for miss in result.patterns[0].near_misses
    ]


def test_a_bias_that_is_an_input_stays() -> None:
    model = attention(ends=(f"{ENDS[0]}, float[16] bv", ENDS[1]))
    assert StackedHeads().apply(model, context()).rewrites == 0


def test_outputs_and_the_other_users_of_heads_survive() -> None:
    arguments = (
        f"{BODY} z = Relu(q) n = Neg(x)",
        (ENDS[0], f"{ENDS[1]}, float[2,4,5,4] z, float[2,5,8] n, float[2,4,5,4] v"),
    )
    before, after = attention(*arguments), attention(*arguments)
    assert StackedHeads().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)


@pytest.mark.tensorrt
def test_the_stack_builds_for_tensorrt(tmp_path: Path) -> None:
    model = attention(dtype=np.float16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    assert StackedHeads().apply(model, context(TENSORRT)).rewrites == 1
    assert build(model, tmp_path).details["counts"]["matmuls"] == {"fp16": 3}
