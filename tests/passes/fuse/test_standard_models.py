"""Graphs of the ONNX standard's own test data that once broke a fusion, or the comparison of its outputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from tests.support.coverage import cover
from tests.support.runner import TENSORRT, context

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
EVERYWHERE = TENSORRT.model_copy(update={"attention": ("fp32", "fp16", "bf16")})
CONTEXTS = {"onnxruntime": context(), "tensorrt": context(EVERYWHERE)}

MODELS = {
    "node/test_if_opt": 0.0,
    "node/test_if_seq": 0.0,
    "node/test_mod_broadcast": 0.0,
    "node/test_resize_downsample_sizes_nearest": 0.0,
    "node/test_resize_upsample_sizes_nearest_not_smaller": 0.0,
    "node/test_split_to_sequence_nokeepdims": 0.0,
    "node/test_stft": 0.0,
    "node/test_stft_with_window": 0.0,
    "pytorch-operator/test_operator_index": 0.0,
    "node/test_attention_4d_fp16_expanded": 2.0**-8,  # float16 keeps 11 significant bits: 2**3 rounding steps
    "node/test_attention_4d_causal_expanded": 2.0**-14,  # float32 keeps 24: 2**10 rounding steps
    "node/test_rms_normalization_4d_axis_negative_1_expanded": 2.0**-14,
}
"""Largest error allowed, relative to the largest value of an output."""


@pytest.mark.parametrize("where", CONTEXTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_standard_graph_keeps_its_outputs(name: str, where: str) -> None:
    path = DATA / name / "model.onnx"
    assert cover(ir.load(path), ir.load(path), CONTEXTS[where]).error <= MODELS[name]
