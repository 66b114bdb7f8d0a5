"""Whether a mask is exactly causal: each query attends to the keys up to its own place, as `is_causal` says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.fuse._attention_match import MASKED, Mask

SHAPING = ("Unsqueeze", "Expand", "Identity")
"""What may give a triangle leading axes; an Expand that changes the last two fails the numerical check."""

STEPS = 12
LARGEST = 1 << 24
"""Elements of a constant mask that is still read: 4096 x 4096."""


def is_causal(mask: Mask) -> bool:
    """Whether the mask keeps the lower triangle and nothing else, for tokens and keys counted from the first."""
    if mask.kept_where is not None:
        return _keeps(mask.value, mask.kept_where)
    value = m.through(mask.value, "Cast", *SHAPING)
    where = m.made_by(value, "Where")
    if where is not None:
        yes, no = m.scalar(where.inputs[1]), m.scalar(where.inputs[2])
        if yes is None or no is None or 0.0 not in (yes, no) or min(yes, no) > MASKED:
            return False
        return _keeps(where.inputs[0], yes == 0.0)
    array = m.constant(value, limit=LARGEST)
    if array is None or array.dtype.kind != "f":
        return False
    wide = array.astype(np.float64)
    return bool(((wide == 0) | (wide <= MASKED)).all()) and _is_triangle(wide == 0)


def _keeps(value: ir.Value | None, truth: bool) -> bool:
    """Whether a boolean equals `truth` in the lower triangle and nowhere else."""
    for _ in range(STEPS):
        node = m.made_by(value, "Not", "Equal", *SHAPING)
        if node is None:
            break
        if node.op_type == "Equal":
            found = m.scalar_operand(node)
            if found is None or found[1] not in (0.0, 1.0):
                return False
            return (found[1] == 1.0) == truth and _lower(found[0])
        truth ^= node.op_type == "Not"
        value = node.inputs[0]
    if truth:
        return _lower(value)
    array = m.constant(value, limit=LARGEST)
    return array is not None and _is_triangle(array == 0)


def _lower(value: ir.Value | None) -> bool:
    """Whether a value is one in the lower triangle and zero above."""
    value = m.through(value, "Cast", *SHAPING)
    triangle = m.made_by(value, "Trilu")
    if triangle is not None:
        diagonal = triangle.inputs[1] if len(triangle.inputs) > 1 else None
        straight = diagonal is None or m.scalar(diagonal) == 0
        return straight and m.attribute(triangle, "upper", 1) == 0 and _is_one(triangle.inputs[0])
    cut = m.made_by(value, "Slice")
    if cut is not None:
        starts, steps = m.integers(cut.inputs[1]), m.integers(cut.inputs[4]) if len(cut.inputs) > 4 else (1,)
        whole = starts is not None and not any(starts) and steps is not None and set(steps) == {1}
        return whole and _lower(cut.inputs[0])
    array = m.constant(value, limit=LARGEST)
    return array is not None and bool(np.isin(array, (0, 1)).all()) and _is_triangle(array == 1)


def _is_one(value: ir.Value | None) -> bool:
    """Whether every element is one (or True)."""
    value = m.through(value, *SHAPING, "Cast")
    node = m.made_by(value, "ConstantOfShape")
    if node is not None:
        fill = m.attribute(node, "value")
        return fill is not None and bool((fill.numpy() == 1).all())
    array = m.constant(value)
    return array is not None and bool((array == 1).all())


def _is_triangle(kept: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether the last two axes are square and True in the lower triangle alone.

    One element is none: spread over the scores it keeps all of them.
    """
    if kept.ndim < 2 or kept.shape[-1] != kept.shape[-2] or kept.shape[-1] == 1:
        return False
    return bool((kept == np.tri(kept.shape[-1], dtype=bool)).all())
