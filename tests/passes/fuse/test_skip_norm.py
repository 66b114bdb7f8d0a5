from __future__ import annotations

import onnxruntime
import pytest

from passes.fuse.skip_norm import FuseSkipNorm
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context

WEIGHTS = "float[4] w = {1,2,3,4}, float[4] b = {4,3,2,1}"
LAYER = "a = Add(x, s) y = LayerNormalization(a, w, b)"
ENDS = ("float[B,S,4] x, float[B,S,4] s", "float[B,S,4] y", WEIGHTS)


def test_the_addition_is_written_so_that_onnx_runtime_keeps_the_faster_pair(tmp_path) -> None:  # type: ignore[no-untyped-def]
    before, after = graph(LAYER, *ENDS), graph(LAYER, *ENDS)
    assert FuseSkipNorm().apply(after, context()).patterns[0].found == 1
    assert operators(after) == {"Sum": 1, "LayerNormalization": 1}
    assert_same_outputs(after, before)
    assert FuseSkipNorm().apply(after, context()).rewrites == 0
    assert "SkipLayerNormalization" in optimised(before, tmp_path / "before.onnx")
    assert "SkipLayerNormalization" not in optimised(after, tmp_path / "after.onnx")


def optimised(model, path) -> set[str]:  # type: ignore[no-untyped-def]
    """Operators of the graph that ONNX Runtime makes of a model at its highest level."""
    import onnx
    import onnx_ir as ir

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("output", ["float[B,S,4] y, float[B,S,4] a"])
def test_a_sum_that_is_a_graph_output_keeps_its_name_and_value(output: str) -> None:
    before, after = graph(LAYER, ENDS[0], output, WEIGHTS), graph(LAYER, ENDS[0], output, WEIGHTS)
    assert FuseSkipNorm().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)


def test_a_bias_is_no_skip() -> None:
    model = graph("a = Add(x, b) y = LayerNormalization(a, w, b)", *ENDS)
    assert FuseSkipNorm().apply(model, context()).rewrites == 0


def test_sides_of_different_rank_are_left_alone_with_the_reason() -> None:
    model = graph(LAYER, "float[B,S,4] x, float[S,4] s", ENDS[1], WEIGHTS)
    result = FuseSkipNorm().apply(model, context())
    reasons = [miss.reason for miss in result.patterns[0].near_misses]
    assert reasons == ["the two sides have ranks 3 and 2, need the same"]


def test_tensorrt_keeps_the_plain_form() -> None:
    model = graph(LAYER, *ENDS)
    assert FuseSkipNorm().apply(model, context(TENSORRT)).rewrites == 0
    assert operators(model) == {"Add": 1, "LayerNormalization": 1}


def test_a_norm_that_onnx_runtime_does_not_fuse_keeps_its_addition(tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = "a = Add(x, s) y = RMSNormalization(a, w)"
    model = graph(text, *ENDS, opset=23)
    assert FuseSkipNorm().apply(model, context()).rewrites == 0
    assert optimised(model, tmp_path / "model.onnx") == {"Add", "RMSNormalization"}
