from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from passes import layers
from passes.fuse.matmul_bias import FuseMatmulBias
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context

WEIGHTS = "float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,-2,3}, float[1,3] wide = {1,2,3}"
BODY = "p = MatMul(x, w) y = Add(p, b)"


GELU = "p = MatMul(x, w) a = Add(p, b) y = Gelu(a)"


def test_a_biased_product_of_matrices_becomes_one_gemm() -> None:
    ends = ("float[B,4] x", "float[B,3] y", WEIGHTS)
    before, after = graph(BODY, *ends), graph(BODY, *ends)
    assert FuseMatmulBias().apply(after, context()).patterns[0].found == 1
    assert operators(after) == {"Gemm": 1}
    assert_same_outputs(after, before)
    assert FuseMatmulBias().apply(after, context()).rewrites == 0


@pytest.mark.parametrize("shape", ["B,S,4", "B,2,S,4"])
def test_products_of_higher_rank_keep_the_addition_that_runs_on_all_threads(shape: str) -> None:
    model = graph(BODY, f"float[{shape}] x", f"float[{shape[:-1]}3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    assert (result.rewrites, result.patterns[0].near_misses) == (0, ())
    assert operators(model) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("shape", ["B,S,4", "B,2,S,4"])
@pytest.mark.parametrize("body", [GELU, GELU.replace("Add(p, b)", "Add(b, p)")])
def test_onnx_runtime_keeps_a_wide_bias_and_its_gelu_apart(shape: str, body: str, tmp_path: Path) -> None:
    ends = (f"float[{shape}] x", f"float[{shape[:-1]}3] y", WEIGHTS)
    before, after = graph(body, *ends), graph(body, *ends)
    assert FuseMatmulBias().apply(after, context()).patterns[1].found == 1
    assert operators(after) == {"MatMul": 1, "Add": 1, "Gelu": 1}
    assert_same_outputs(after, before)
    assert FuseMatmulBias().apply(after, context()).rewrites == 0
    assert "BiasGelu" in optimised(before, tmp_path / "before.onnx")
    assert "BiasGelu" not in optimised(after, tmp_path / "after.onnx")


def optimised(model: ir.Model, path: Path) -> set[str]:
    """Operators of the graph that ONNX Runtime makes of a model at its highest level."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


def test_the_quantizer_still_sees_a_wide_bias_as_the_layers_own() -> None:
    model = graph(GELU, "float[B,S,4] x", "float[B,S,3] y", WEIGHTS)
    FuseMatmulBias().apply(model, context())
    (layer,), _ = layers.find(model, ["MatMul"])
    assert layer.bias is not None
    np.testing.assert_array_equal(layer.bias.numpy(), [1, -2, 3])


def test_a_gelu_by_tanh_is_left_alone() -> None:
    model = graph(GELU.replace("Gelu(", 'Gelu<approximate="tanh">('), "float[B,S,4] x", "float[B,S,3] y", WEIGHTS)
    assert FuseMatmulBias().apply(model, context()).rewrites == 0


def test_a_biased_value_that_is_a_graph_output_keeps_its_bias() -> None:
    model = graph(GELU, "float[B,S,4] x", "float[B,S,3] y, float[B,S,3] a", WEIGHTS)
    assert FuseMatmulBias().apply(model, context()).rewrites == 0


def test_a_bias_that_is_not_one_number_per_column_is_left_alone_with_the_reason() -> None:
    model = graph(BODY.replace(" b)", " wide)"), "float[B,4] x", "float[B,3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the bias has rank 2 and 3 values, needs rank 1 and 3"]


def test_a_weight_from_outside_is_left_alone_with_the_reason() -> None:
    model = graph("p = MatMul(x, z) y = Add(p, b)", "float[B,4] x, float[4,3] z", "float[B,3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the weight is not constant"]


def test_a_product_that_is_a_graph_output_stays() -> None:
    model = graph(BODY, "float[B,4] x", "float[B,3] y, float[B,3] p", WEIGHTS)
    result = FuseMatmulBias().apply(model, context())
    assert "used elsewhere" in result.patterns[0].near_misses[0].reason
    assert operators(model) == {"MatMul": 1, "Add": 1}


def test_tensorrt_keeps_the_plain_form_and_says_why() -> None:
    model = graph(BODY, "float[B,S,4] x", "float[B,S,3] y", WEIGHTS)
    result = FuseMatmulBias().apply(model, context(TENSORRT))
    assert result.rewrites == 0
    assert "TensorRT fuses the bias" in result.notes[0]
