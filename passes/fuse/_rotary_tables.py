"""The cosine and sine of a rotary embedding, as the operator wants them: (batch, tokens, head_dim / 2)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.draft import Draft

ELEMENTWISE = ("Cos", "Sin", "Cast", "Identity")


def without_heads(table: ir.Value | None) -> ir.Value | None:
    """(batch or 1, tokens, head_dim) of a table that was given a heads axis of 1."""
    node = m.made_by(table, "Unsqueeze")
    if node is None or m.rank(table) != 4 or m.axes(node) not in ((1,), (-3,)):
        return None
    return node.inputs[0] if m.rank(node.inputs[0]) == 3 else None


def one_of_each_pair(draft: Draft, table: ir.Value, size: int, interleaved: bool) -> ir.Value | None:
    """Each pair's first value along the last axis, made without the second; None when they may differ."""
    array = m.constant(table)
    if array is not None:
        if not array.shape or array.shape[-1] != size:
            return None
        first, second = (array[..., ::2], array[..., 1::2]) if interleaved else np.split(array, 2, axis=-1)
        return draft.constant(np.ascontiguousarray(first), "half_table") if np.array_equal(first, second) else None
    node = m.made_by(table)
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Concat" and not interleaved:
        twice = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return node.inputs[0] if twice and m.attribute(node, "axis") in (-1, (m.rank(table) or 0) - 1) else None
    if node.op_type == "Reshape" and interleaved:
        return _repeated(table, node)
    if node.op_type in ELEMENTWISE:
        inner = one_of_each_pair(draft, node.inputs[0], size, interleaved)
        to = {"to": m.attribute(node, "to")} if node.op_type == "Cast" else {}
        if inner is None:
            return None
        made = draft.op(node.op_type, [inner], **to)
        made.type = table.type
        return made
    if node.op_type in ("Mul", "Div"):
        number = next((side for side in node.inputs[node.op_type == "Div" :] if m.scalar(side) is not None), None)
        value = node.inputs[1] if number is node.inputs[0] else node.inputs[0]
        scaled = number is not None and value is not None
        inner = one_of_each_pair(draft, value, size, interleaved) if scaled and value is not None else None
        if inner is None or number is None:
            return None
        return draft.op(node.op_type, [inner, number])
    if node.op_type == "Gather" and m.attribute(node, "axis", 0) == 0 and m.rank(node.inputs[0]) == 2:
        rows = one_of_each_pair(draft, node.inputs[0], size, interleaved)
        return None if rows is None else draft.op("Gather", [rows, node.inputs[1]], axis=0)
    return None


def _repeated(table: ir.Value, merge: ir.Node) -> ir.Value | None:
    """Values whose every element was repeated once, beside itself (torch.repeat_interleave), or None."""
    twice = m.made_by(merge.inputs[0], "Expand", "Tile", "Concat")
    single = m.made_by(twice.inputs[0], "Unsqueeze") if twice is not None else None
    values = single.inputs[0] if single is not None else None
    if twice is None or single is None or values is None or m.rank(values) != m.rank(table):
        return None
    if twice.op_type == "Concat" and (len(twice.inputs) != 2 or twice.inputs[0] is not twice.inputs[1]):
        return None
    rank = m.rank(values) or 0
    if m.axes(single) not in ((-1,), (rank,)) or m.static(twice.outputs[0], -1) != 2:
        return None
    kept = all(
        m.same_dimension(m.dimension(values, axis), m.dimension(twice.outputs[0], axis)) for axis in range(rank)
    )
    same = all(m.same_dimension(m.dimension(values, axis), m.dimension(table, axis)) for axis in range(rank - 1))
    return values if kept and same else None


def spread(draft: Draft, model: ir.Model, half: ir.Value, x: ir.Value) -> ir.Value:
    """The table repeated for every row of the batch, as the operator wants it."""
    batch = m.dimension(x, 0)
    source, axis = next(
        (
            (value, axis)
            for value in model.graph.inputs
            for axis in range(m.rank(value) or 0)
            if isinstance(batch, str) and m.dimension(value, axis) == batch
        ),
        (x, 0),
    )
    size = draft.op("Shape", [source], start=axis, end=axis + 1)
    ones = draft.constant(np.ones(2, np.int64), "ones_2")
    return draft.op("Expand", [half, draft.op("Concat", [size, ones], axis=0)])
