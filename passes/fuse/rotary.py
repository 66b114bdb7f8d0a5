"""Rotary embedding: pairs of a head's elements turned by an angle that grows with the position, in one operator.

Before: y = x * cos + Concat(-x[..., d/2:], x[..., :d/2]) * sin          x: (batch, heads, tokens, d)
After:  y = RotaryEmbedding(x, cos[..., :d/2], sin[..., :d/2])           (ONNX, opset 23)

The halves of x may come from two Slices or one Split. The operator wants one half of each table, since both halves
are the same; that they are is read from the graph (a Concat of one value with itself, or a constant). Rotation of
the first part of a head only (Phi) is this pattern on a slice. Source: Su et al., RoFormer, 2021.

Leaves alone: tables whose halves are not surely equal, and heads that lie behind the tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.draft import Draft
from passes.rewriting import Rewriting, rewrite

ELEMENTWISE = ("Cos", "Sin", "Cast", "Identity")


class FuseRotary(Pass):
    """Write rotary position embedding as one operator (opset 23)."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every rotary embedding of the main graph."""
        return rewrite(model, context, ("rotary",), _match)


def _match(rewriting: Rewriting) -> None:
    for concat in rewriting.nodes("Concat"):
        x = _rotated_half(concat)
        times_sin = m.only_user(concat.outputs[0]) if x is not None else None
        add = m.only_user(times_sin.outputs[0]) if times_sin is not None and times_sin.op_type == "Mul" else None
        if x is None or times_sin is None or add is None or add.op_type != "Add":
            continue
        other = add.inputs[1] if add.inputs[0] is times_sin.outputs[0] else add.inputs[0]
        times_cos = m.made_by(other, "Mul")
        if times_cos is None or x not in times_cos.inputs or not m.is_private(times_cos.outputs[0]):
            rewriting.miss("rotary", concat, "the turned half is not added to the same value times a cosine")
            continue
        sine = times_sin.inputs[1] if times_sin.inputs[0] is concat.outputs[0] else times_sin.inputs[0]
        cosine = times_cos.inputs[1] if times_cos.inputs[0] is x else times_cos.inputs[0]
        draft = rewriting.draft("rotary", concat, least_opset=23)
        reason = _write(draft, rewriting.model, x, cosine, sine, add.outputs[0])
        if reason:
            draft.withdraw()
            rewriting.miss("rotary", concat, reason)
        else:
            rewriting.propose(draft)


def _rotated_half(concat: ir.Node) -> ir.Value | None:
    """x, if the node is Concat(-second half of x, first half of x) along the last axis."""
    if len(concat.inputs) != 2 or m.attribute(concat, "axis") not in (-1, (m.rank(concat.outputs[0]) or 0) - 1):
        return None
    negative = m.made_by(concat.inputs[0], "Neg")
    size = m.static(concat.outputs[0], -1)
    if negative is None or size is None or size % 2:
        return None
    second, first = _part(negative.inputs[0], size), _part(concat.inputs[1], size)
    if second is None or first is None or second[0] is not first[0]:
        return None
    return first[0] if (first[1], second[1]) == (0, size // 2) else None


def _part(value: ir.Value | None, size: int) -> tuple[ir.Value, int] | None:
    """(whole, start) if `value` is half of a whole of `size` elements along the last axis."""
    if value is None or m.static(value, -1) != size // 2:
        return None
    node = m.made_by(value, "Slice", "Split")
    whole = node.inputs[0] if node is not None else None
    if node is None or whole is None or m.static(whole, -1) != size:
        return None
    last = (m.rank(whole) or 0) - 1
    if node.op_type == "Split":
        if m.attribute(node, "axis", 0) not in (-1, last) or len(node.outputs) != 2:
            return None
        return whole, 0 if node.outputs[0] is value else size // 2
    starts, along = m.integers(node.inputs[1]), m.integers(node.inputs[3]) if len(node.inputs) > 3 else None
    if starts is None or along not in ((-1,), (last,)):
        return None
    return whole, starts[0] if starts[0] >= 0 else size + starts[0]


def _write(
    draft: Draft, model: ir.Model, x: ir.Value, cosine: ir.Value | None, sine: ir.Value | None, output: ir.Value
) -> str:
    """Fill the draft; the reason why not, or ""."""
    size = m.static(x, -1)
    if m.rank(x) != 4 or size is None:
        return f"the value has rank {m.rank(x)}, needs 4 (batch, heads, tokens, head_dim)"
    tables = []
    for name, table in (("cosine", cosine), ("sine", sine)):
        flat = _without_heads(table)
        if flat is None:
            return f"the {name}'s second axis (heads) has {m.dimension(table, -3)} elements, needs 1"
        half = _half(draft, flat, size)
        if half is None:
            return f"the two halves of the {name} are not surely equal"
        if not m.same_dimension(m.dimension(flat, -3), m.dimension(x, 0)):
            half = _spread(draft, model, half, x)
        tables.append(half)
    draft.replace(output, draft.op("RotaryEmbedding", [x, *tables]))
    return ""


def _without_heads(table: ir.Value | None) -> ir.Value | None:
    """(batch or 1, tokens, head_dim) of a table that was given a heads axis of 1."""
    node = m.made_by(table, "Unsqueeze")
    if node is None or m.rank(table) != 4 or m.axes(node) not in ((1,), (-3,)):
        return None
    return node.inputs[0] if m.rank(node.inputs[0]) == 3 else None


def _half(draft: Draft, table: ir.Value, size: int) -> ir.Value | None:
    """The first half along the last axis, made without the second, or None when they are not surely equal."""
    array = m.constant(table)
    if array is not None:
        halves = np.split(array, 2, axis=-1) if array.shape and array.shape[-1] == size else [array]
        if len(halves) == 2 and np.array_equal(halves[0], halves[1]):
            return draft.constant(np.ascontiguousarray(halves[0]), "half_table")
        return None
    node = m.made_by(table)
    if node is None or node.inputs[0] is None:
        return None
    last = (m.rank(table) or 0) - 1
    if node.op_type == "Concat":
        twice = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return node.inputs[0] if twice and m.attribute(node, "axis") in (-1, last) else None
    if node.op_type in ELEMENTWISE:
        inner = _half(draft, node.inputs[0], size)
        to = {"to": m.attribute(node, "to")} if node.op_type == "Cast" else {}
        if inner is None:
            return None
        made = draft.op(node.op_type, [inner], **to)
        made.type = table.type
        return made
    if node.op_type in ("Mul", "Div"):
        number = next((side for side in node.inputs[node.op_type == "Div" :] if m.scalar(side) is not None), None)
        value = node.inputs[1] if number is node.inputs[0] else node.inputs[0]
        inner = _half(draft, value, size) if number is not None and value is not None else None
        if inner is None or number is None:
            return None
        return draft.op(node.op_type, [inner, number])
    if node.op_type == "Gather" and m.attribute(node, "axis", 0) == 0:
        rows = _half(draft, node.inputs[0], size) if m.rank(node.inputs[0]) == 2 else None
        return None if rows is None else draft.op("Gather", [rows, node.inputs[1]], axis=0)
    return None


def _spread(draft: Draft, model: ir.Model, half: ir.Value, x: ir.Value) -> ir.Value:
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
