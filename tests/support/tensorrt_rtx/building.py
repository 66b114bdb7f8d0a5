"""Does a pass's output build? One call for every room's tests; mark them `tensorrt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from optimize.engines.base import Artifact, AxisRange, BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import TensorRTOptions


def build(
    model: ir.Model, folder: Path, ranges: Mapping[str, AxisRange] | None = None, **options: object
) -> Artifact:
    """Build a TensorRT engine from `model` in `folder`.

    Args:
        model: Strongly typed: no node mixes types.
        ranges: Of its named dynamic axes; absent: 1 to 8 for each.
        options: Of the engine.

    Returns:
        The artifact; `details["counts"]` tells what its matmuls run in: {"matmuls": {"int8": 1}}.
    """
    path = folder / "model.onnx"
    ir.save(model, path)
    axes = {axis.value for value in model.graph.inputs for axis in value.shape or () if not isinstance(axis, int)}
    known = dict(ranges or {}) or {str(axis): AxisRange(1, 4, 8) for axis in axes if axis}
    into = folder / "engine"
    into.mkdir(exist_ok=True)
    engine = TensorRTEngine(TensorRTOptions.model_validate(options))
    return engine.build(BuildRequest(path, into, known), lambda what, done, total: None)
