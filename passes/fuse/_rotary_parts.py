"""The parts of a rotary embedding: pairs of a head's elements, as halves or as neighbours."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from passes import matching as m


@dataclasses.dataclass(frozen=True)
class Part:
    """Every second element of a head, or one half of it.

    Attributes:
        whole: (..., head_dim) that the part was taken from.
        second: Whether it holds the second element of each pair.
        interleaved: Whether pairs are neighbours (0, 1), (2, 3), ...; else they are (0, d/2), (1, d/2 + 1), ...
    """

    whole: ir.Value
    second: bool
    interleaved: bool


def part(value: ir.Value | None) -> Part | None:
    """What `value` is a part of, or None."""
    node = m.made_by(value, "Slice", "Split", "Squeeze", "Gather")
    whole = node.inputs[0] if node is not None else None
    if node is None or whole is None:
        return None
    if node.op_type in ("Squeeze", "Gather"):
        return _of_pairs(node)
    size, last = m.static(whole, -1), (m.rank(whole) or 0) - 1
    if size is None or size % 2 or m.static(value, -1) != size // 2:
        return None
    if node.op_type == "Split":
        if m.attribute(node, "axis", 0) not in (-1, last) or len(node.outputs) != 2:
            return None
        return Part(whole, second=node.outputs[0] is not value, interleaved=False)
    starts, along, steps = (m.integers(node.inputs[at]) if len(node.inputs) > at else None for at in (1, 3, 4))
    if starts is None or along not in ((-1,), (last,)) or steps not in (None, (1,), (2,)):
        return None
    start = starts[0] if starts[0] >= 0 else size + starts[0]
    interleaved = steps == (2,)
    if start not in ((0, 1) if interleaved else (0, size // 2)):
        return None
    return Part(whole, second=start != 0, interleaved=interleaved)


def _of_pairs(node: ir.Node) -> Part | None:
    """A part taken by its index out of (..., head_dim / 2, 2)."""
    if node.op_type == "Gather":
        pairs, at = node.inputs[0], m.scalar(node.inputs[1])
        along = m.attribute(node, "axis", 0)
    else:
        taken = m.made_by(node.inputs[0], "Slice")
        starts = m.integers(taken.inputs[1]) if taken is not None else None
        if taken is None or starts is None or m.axes(node) is None or m.static(node.inputs[0], -1) != 1:
            return None
        pairs, at, along = taken.inputs[0], float(starts[0]), (m.axes(node) or (0,))[0]
    split = m.made_by(pairs, "Reshape")
    last = (m.rank(pairs) or 0) - 1
    if split is None or m.static(pairs, -1) != 2 or along not in (-1, last) or at not in (0, 1, -1, -2):
        return None
    whole = split.inputs[0]
    if whole is None or m.rank(whole) != last or m.static(whole, -1) != 2 * (m.static(pairs, -2) or 0):
        return None
    return Part(whole, second=at in (1, -1), interleaved=True)


def joined(concat: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, bool] | None:
    """(first elements, second elements, joined value, interleaved) of the pairs that `concat` puts together."""
    left, right = concat.inputs if len(concat.inputs) == 2 else (None, None)
    rank = m.rank(concat.outputs[0])
    if left is None or right is None or rank is None or m.attribute(concat, "axis") not in (-1, rank - 1):
        return None
    sides = [m.made_by(side, "Unsqueeze") for side in (left, right)]
    if None in sides:
        return left, right, concat.outputs[0], False
    inner = [side.inputs[0] for side in sides if side is not None and m.axes(side) in ((-1,), (rank - 1,))]
    merge = m.only_user(concat.outputs[0])
    if len(inner) != 2 or inner[0] is None or inner[1] is None or merge is None or merge.op_type != "Reshape":
        return None
    size = m.static(inner[0], -1)
    if size is None or m.static(merge.outputs[0], -1) != 2 * size or m.rank(merge.outputs[0]) != rank - 1:
        return None
    return inner[0], inner[1], merge.outputs[0], True
