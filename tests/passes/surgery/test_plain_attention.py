from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from passes.surgery.plain_attention import PlainAttention
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context
from tests.support.tensorrt_rtx.building import build

INPUTS = "float[2,4,5,8] q, float[2,4,6,8] k, float[2,4,6,8] v"
OUTPUTS = "float[2,4,5,8] y"


def attention(body: str = "y = Attention(q, k, v)", inputs: str = INPUTS, outputs: str = OUTPUTS) -> ir.Model:
    return graph(body, inputs, outputs, opset=23)


@pytest.mark.parametrize("body", ["y = Attention(q, k, v)", "y = Attention<scale = 0.3>(q, k, v)"])
def test_an_attention_becomes_two_products_and_a_softmax(body: str) -> None:
    before, after = attention(body), attention(body)
    assert PlainAttention().apply(after, context(TENSORRT)).rewrites == 1
    assert operators(after) == {"Mul": 1, "Transpose": 1, "MatMul": 2, "Softmax": 1}
    assert_same_outputs(after, before)
    assert PlainAttention().apply(after, context(TENSORRT)).rewrites == 0


def test_heads_inside_the_last_axis_are_laid_out() -> None:
    ends = ("float[2,5,32] q, float[2,6,32] k, float[2,6,32] v", "float[2,5,32] y")
    body = "y = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)"
    before, after = attention(body, *ends), attention(body, *ends)
    assert PlainAttention().apply(after, context(TENSORRT)).rewrites == 1
    assert operators(after) == {"Reshape": 4, "Mul": 1, "Transpose": 5, "MatMul": 2, "Softmax": 1}
    assert_same_outputs(after, before)


@pytest.mark.parametrize(
    ("body", "inputs", "reason"),
    [
        ("y = Attention<is_causal = 1>(q, k, v)", INPUTS, "it is causal"),
        ("y = Attention<softcap = 2.0>(q, k, v)", INPUTS, "it caps its scores"),
        ("y = Attention(q, k, v, mask)", f"{INPUTS}, float[5,6] mask", "it has a mask or a cache"),
        ("y = Attention(q, k, v)", INPUTS.replace("[2,4,6", "[2,2,6"), "it has fewer key heads than query heads"),
    ],
)
def test_a_look_alike_is_refused_with_the_reason(body: str, inputs: str, reason: str) -> None:
    model = attention(body, inputs)
    result = PlainAttention().apply(model, context(TENSORRT))
    assert [miss.reason for miss in result.patterns[0].near_misses] == [reason]
    assert operators(model) == {"Attention": 1}


def test_the_other_users_of_what_an_attention_reads_and_gives_survive() -> None:
    arguments = (
        "y = Attention(q, k, v) z = Relu(y) n = Neg(k)",
        INPUTS,
        f"{OUTPUTS}, float[2,4,5,8] z, float[2,4,6,8] n",
    )
    before, after = attention(*arguments), attention(*arguments)
    assert PlainAttention().apply(after, context(TENSORRT)).rewrites == 1
    assert_same_outputs(after, before)


@pytest.mark.tensorrt
def test_the_written_out_form_builds_for_tensorrt(tmp_path: Path) -> None:
    half = [text.replace("float[", "float16[") for text in (INPUTS, OUTPUTS)]
    model = attention("y = Attention(q, k, v)", *half)
    assert PlainAttention().apply(model, context(TENSORRT)).rewrites == 1
    assert build(model, tmp_path).details["counts"]["matmuls"] == {"fp16": 2}
