from __future__ import annotations

import pytest

from passes.fuse.matmul_bias import FuseMatmulBias
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context

WEIGHTS = "float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,-2,3}, float[1,3] wide = {1,2,3}"
BODY = "p = MatMul(x, w) y = Add(p, b)"


@pytest.mark.parametrize("shape", ["B,S,4", "B,4", "B,2,S,4"])
def test_a_biased_product_becomes_one_gemm_for_any_rank(shape: str) -> None:
    ends = (f"float[{shape}] x", f"float[{shape[:-1]}3] y", WEIGHTS)
    before, after = graph(BODY, *ends), graph(BODY, *ends)
    assert FuseMatmulBias().apply(after, context()).rewrites == 1
    assert operators(after)["Gemm"] == 1
    assert not {"MatMul", "Add"} & set(operators(after))
    assert_same_outputs(after, before)
    assert FuseMatmulBias().apply(after, context()).rewrites == 0


def test_two_layers_share_one_shape() -> None:
    body = "p = MatMul(x, w) a = Add(b, p) q = MatMul(a, u) y = Add(q, c)"
    ends = (
        "float[B,S,4] x",
        "float[B,S,3] y",
        WEIGHTS + ", float[3,3] u = {1,2,3,4,5,6,7,8,9}, float[3] c = {1,2,3}",
    )
    before, after = graph(body, *ends), graph(body, *ends)
    assert FuseMatmulBias().apply(after, context()).rewrites == 2
    assert operators(after)["Shape"] == 1
    assert_same_outputs(after, before)


def test_a_bias_that_is_not_one_number_per_column_is_left_alone_with_the_reason() -> None:
    model = graph(BODY.replace(" b)", " wide)"), "float[B,S,4] x", "float[B,S,3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the bias has rank 2 and 3 values, needs rank 1 and 3"]


def test_a_weight_from_outside_is_left_alone_with_the_reason() -> None:
    model = graph("p = MatMul(x, z) y = Add(p, b)", "float[B,S,4] x, float[4,3] z", "float[B,S,3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the weight is not constant"]


def test_a_product_that_is_a_graph_output_stays() -> None:
    model = graph(BODY, "float[B,S,4] x", "float[B,S,3] y, float[B,S,3] p", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    assert "used elsewhere" in result.patterns[0].near_misses[0].reason
    assert operators(model) == {"MatMul": 1, "Add": 1}


def test_tensorrt_keeps_the_plain_form_and_says_why() -> None:
    model = graph(BODY, "float[B,S,4] x", "float[B,S,3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context(TENSORRT))
    assert result.rewrites == 0
    assert "TensorRT fuses the bias" in result.notes[0]
