"""Raising a model's standard opset, when a fused operator is newer than the model."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import version_converter

IR_VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 12}
"""Least IR version for an opset (onnx/docs/Versioning.md)."""


def current(model: ir.Model) -> int:
    """The model's standard opset."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))


def lift(model: ir.Model, least: int) -> None:
    """Convert `model` to standard opset `least` in place, if it is below."""
    if current(model) >= least:
        return
    version_converter.convert_version(model, least)
    model.ir_version = max(model.ir_version, IR_VERSIONS.get(least, 10))
