"""Rotary embedding: pairs of a head's elements turned by an angle that grows with the position, in one operator.

Before: y = x * cos + Concat(-x[..., d/2:], x[..., :d/2]) * sin          x: (batch, heads, tokens, d)
        y = Concat(x1 * c - x2 * s, x2 * c + x1 * s)                     x1, x2: the halves of x
After:  y = RotaryEmbedding(x, cos[..., :d/2], sin[..., :d/2])           (ONNX, opset 23)

The same with neighbours as pairs, put together again by a Reshape behind the Concat: then `interleaved` is 1. The
parts of x may come from two Slices, one Split, or a Reshape to pairs. The operator wants one value of each table
per pair, since both are the same; that they are is read from the graph (a Concat of one value with itself, a
repeated axis, or a constant). Rotation of the first part of a head only (Phi) is this pattern on a slice. Source:
Su et al., RoFormer, 2021.

Leaves alone: tables whose values are not surely equal within pairs, and heads that lie behind the tokens.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.draft import Draft
from passes.fuse._rotary_parts import joined, part
from passes.fuse._rotary_tables import one_of_each_pair, spread, without_heads
from passes.rewriting import Rewriting, rewrite


class FuseRotary(Pass):
    """Write rotary position embedding as one operator (opset 23)."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every rotary embedding of the main graph."""
        return rewrite(model, context, ("rotary",), _match)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A rotation that was found.

    Attributes:
        x: (batch, heads, tokens, head_dim).
        cosine: Table with one value per pair (`single`), or with each value twice.
        sine: The same.
        output: x, turned.
        interleaved: Whether pairs are neighbours.
        single: Whether the tables have one value per pair.
    """

    x: ir.Value
    cosine: ir.Value | None
    sine: ir.Value | None
    output: ir.Value
    interleaved: bool
    single: bool


def _match(rewriting: Rewriting) -> None:
    for concat in rewriting.nodes("Concat"):
        found = _turned(concat) or _paired(concat)
        if found is None:
            continue
        if isinstance(found, str):
            rewriting.miss("rotary", concat, found)
            continue
        draft = rewriting.draft("rotary", concat, least_opset=23)
        reason = _write(draft, rewriting.model, found)
        if reason:
            draft.withdraw()
            rewriting.miss("rotary", concat, reason)
        else:
            rewriting.propose(draft)


def _turned(concat: ir.Node) -> _Turn | str | None:
    """x * cos + (-second parts, first parts) * sin, around the Concat of the parts."""
    pairs = joined(concat)
    negative = m.made_by(pairs[0], "Neg") if pairs is not None else None
    if pairs is None or negative is None:
        return None
    _, right, rotated, interleaved = pairs
    second, first = part(negative.inputs[0]), part(right)
    if second is None or first is None or second.whole is not first.whole:
        return None
    if (first.second, second.second, first.interleaved, second.interleaved) != (False, True, *[interleaved] * 2):
        return None
    x = first.whole
    times_sin = m.only_user(rotated)
    add = m.only_user(times_sin.outputs[0]) if times_sin is not None and times_sin.op_type == "Mul" else None
    if times_sin is None or add is None or add.op_type != "Add":
        return None
    other = _other(add, times_sin.outputs[0])
    times_cos = m.made_by(other, "Mul")
    if times_cos is None or x not in times_cos.inputs or not m.is_private(times_cos.outputs[0]):
        return "the turned half is not added to the same value times a cosine"
    return _Turn(
        x, _other(times_cos, x), _other(times_sin, rotated), add.outputs[0], interleaved=interleaved, single=False
    )


def _paired(concat: ir.Node) -> _Turn | None:
    """(x1 * c - x2 * s, x2 * c + x1 * s), around the Concat that puts the pairs together."""
    pairs = joined(concat)
    if pairs is None:
        return None
    left, right, output, interleaved = pairs
    minus, plus = m.made_by(left, "Sub"), m.made_by(right, "Add")
    if minus is None or plus is None or not (m.is_private(left) and m.is_private(right)):
        return None
    ahead, behind = _product(minus.inputs[0]), _product(minus.inputs[1])
    sums = {_product(plus.inputs[0]), _product(plus.inputs[1])}
    if ahead is None or behind is None:
        return None
    (x1, cosine), (x2, sine) = ahead, behind
    first, second = part(x1), part(x2)
    if sums != {(x2, cosine), (x1, sine)} or first is None or second is None or first.whole is not second.whole:
        return None
    if (first.second, second.second, first.interleaved, second.interleaved) != (False, True, *[interleaved] * 2):
        return None
    return _Turn(first.whole, cosine, sine, output, interleaved=interleaved, single=True)


def _product(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """(part of a head, table) that `value` is the product of, or None."""
    node = m.made_by(value, "Mul")
    if node is None or value is None or not m.is_private(value):
        return None
    for one, other in m.operands(node):
        if part(one) is not None and one is not None and other is not None:
            return one, other
    return None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _write(draft: Draft, model: ir.Model, found: _Turn) -> str:
    """Fill the draft; the reason why not, or ""."""
    x, size = found.x, m.static(found.x, -1)
    if m.rank(x) != 4 or size is None:
        return f"the value has rank {m.rank(x)}, needs 4 (batch, heads, tokens, head_dim)"
    tables = []
    for name, table in (("cosine", found.cosine), ("sine", found.sine)):
        flat = without_heads(table)
        if flat is None:
            return f"the {name}'s second axis (heads) has {m.dimension(table, -3)} elements, needs 1"
        half: ir.Value | None = flat
        if not found.single:
            half = one_of_each_pair(draft, flat, size, found.interleaved)
        if half is None:
            parts = "neighbours in" if found.interleaved else "halves of"
            return f"the two {parts} the {name} are not surely equal"
        if not m.same_dimension(m.dimension(flat, -3), m.dimension(x, 0)):
            half = spread(draft, model, half, x)
        tables.append(half)
    interleaved = 1 if found.interleaved else None
    draft.replace(found.output, draft.op("RotaryEmbedding", [x, *tables], interleaved=interleaved))
    return ""
