"""Whether a mask can hold minus infinity."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m

SHAPING = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Slice", "Transpose", "Identity", "Gather")
STEPS = 12
"""How far up a mask is followed; masks are made in a handful of operators."""


def finite_mask(value: ir.Value | None, steps: int = STEPS) -> bool:
    """Whether an additive mask is surely finite: constants, choices between them, and what shaping leaves
    of those."""
    if value is None or steps == 0:
        return False
    array = m.constant(value)
    if array is not None:
        return array.dtype.kind in "iub" or bool(np.isfinite(array.astype(np.float64)).all())
    if value.dtype is not None and (value.dtype == ir.DataType.BOOL or value.dtype.is_integer()):
        return True
    node = m.made_by(value)
    if node is None:
        return False
    if node.op_type == "Where":
        return finite_mask(node.inputs[1], steps - 1) and finite_mask(node.inputs[2], steps - 1)
    if node.op_type in SHAPING:
        return finite_mask(node.inputs[0], steps - 1)
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype in (ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.INT32)
    return False


def finite_scores(value: ir.Value | None, steps: int = STEPS) -> bool:
    """Whether the scores in front of a softmax stay finite when the activations do."""
    node = m.made_by(value)
    if node is None or steps == 0:
        return False
    if node.op_type == "MatMul":
        return True
    if node.op_type in ("Mul", "Div"):
        found = m.scalar(node.inputs[1])
        other = found if found is not None else m.scalar(node.inputs[0]) if node.op_type == "Mul" else None
        inner = node.inputs[0] if found is not None else node.inputs[1]
        return bool(other) and np.isfinite(other or 0.0) and finite_scores(inner, steps - 1)
    if node.op_type == "Add":
        return any(finite_scores(left, steps - 1) and finite_mask(right) for left, right in m.operands(node))
    if node.op_type == "Where":
        choices = [(node.inputs[1], node.inputs[2]), (node.inputs[2], node.inputs[1])]
        return any(finite_mask(low) and finite_scores(scores, steps - 1) for scores, low in choices)
    if node.op_type in ("Cast", "Identity", "Reshape", "Transpose", "Tanh"):
        return finite_scores(node.inputs[0], steps - 1)
    return False
