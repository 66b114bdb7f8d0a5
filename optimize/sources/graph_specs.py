"""Inputs and outputs of a graph as specs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from optimize.engines.base import TensorSpec
from optimize.errors import UsageError


def specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a graph as specs.

    Raises:
        UsageError: When one is no tensor, or its type or rank is unknown.
    """
    return tuple(_spec(value) for value in values)


def _spec(value: ir.Value) -> TensorSpec:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise UsageError(f"'{value.name}' is no tensor but a {type(value.type).__name__}; not supported.")
    is_untyped = value.dtype is None or value.dtype == ir.DataType.UNDEFINED
    if value.dtype is None or is_untyped or value.shape is None:
        raise UsageError(
            f"'{value.name}' has no {'type' if is_untyped else 'shape'} in the graph.",
            hint="Run onnx.shape_inference on the file, or state it when exporting.",
        )
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    dtype = "str" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
    return TensorSpec(str(value.name), dtype, shape)
