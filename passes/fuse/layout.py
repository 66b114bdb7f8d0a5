"""Layout: transposes, reshapes and squeezes that undo each other or do nothing.

Before: y = Transpose(Transpose(x, p), q)
        y = Reshape(Reshape(x, s), t)
        y = Squeeze(Unsqueeze(x, a), a)
After:  y = Transpose(x, p then q), or x when that is no turn at all
        y = Reshape(x, t), or x when its shape is t already
        y = x

Leaves alone: a second Reshape whose target copies dimensions of the first (0), unless all dimensions are known.
"""

from __future__ import annotations

import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, merged, rewrite

PATTERNS = ("transposes", "reshapes", "squeezes")


class FuseLayout(Pass):
    """Cancel transposes, reshapes and squeezes against each other."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Cancel pairs until none is left; chains fold two at a time."""
        rounds = [rewrite(model, context, PATTERNS, _match)]
        while rounds[-1].rewrites:
            rounds.append(rewrite(model, context, PATTERNS, _match))
        return merged(rounds)


def _match(rewriting: Rewriting) -> None:
    busy: set[ir.Node] = set()
    for node in rewriting.nodes("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
        x = node.inputs[0]
        before = m.made_by(x)
        # A pair at a time: the inner node of one pair is not the outer node of another in the same round.
        if before in busy or x is None:
            continue
        done = _transpose(rewriting, node, x) or _reshape(rewriting, node, x) or _squeeze(rewriting, node, x)
        if done:
            busy.add(node)


def _transpose(rewriting: Rewriting, node: ir.Node, x: ir.Value) -> bool:
    order = _order(node)
    if order is None:
        return False
    inner = m.made_by(x, "Transpose")
    first = _order(inner) if inner is not None else None
    source = inner.inputs[0] if inner is not None and first is not None else x
    total = [first[axis] for axis in order] if first is not None else order
    if source is None or (first is None and total != sorted(total)):
        return False
    draft = rewriting.draft("transposes", node)
    identity = total == sorted(total)
    draft.replace(node.outputs[0], source if identity else draft.op("Transpose", [source], perm=total))
    rewriting.propose(draft)
    return True


def _order(node: ir.Node) -> list[int] | None:
    """A Transpose's permutation; by default it turns all dimensions around."""
    rank = m.rank(node.inputs[0])
    if node.op_type != "Transpose" or rank is None:
        return None
    return list(m.attribute(node, "perm", range(rank - 1, -1, -1)))


def _reshape(rewriting: Rewriting, node: ir.Node, x: ir.Value) -> bool:
    if node.op_type != "Reshape" or len(node.inputs) < 2:  # before opset 5 the target was an attribute
        return False
    inner = m.made_by(x, "Reshape", "Squeeze", "Unsqueeze", "Flatten")
    source = inner.inputs[0] if inner is not None else x
    if source is None:
        return False
    draft = rewriting.draft("reshapes", node)
    for candidate in dict.fromkeys((source, x)):
        if same_shape(candidate, node.outputs[0]):
            draft.replace(node.outputs[0], candidate)
            rewriting.propose(draft)
            return True
    target = m.integers(node.inputs[1])
    if inner is None or target is None or 0 in target:
        return False
    draft.replace(node.outputs[0], draft.op("Reshape", [source, node.inputs[1]]))
    rewriting.propose(draft)
    return True


def same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether two values surely have the same shape, dimension by dimension."""
    count = m.rank(left)
    return (
        count is not None
        and count == m.rank(right)
        and all(m.same_dimension(m.dimension(left, axis), m.dimension(right, axis)) for axis in range(count))
    )


def _squeeze(rewriting: Rewriting, node: ir.Node, x: ir.Value) -> bool:
    inverse = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(node.op_type)
    inner = m.made_by(x, inverse) if inverse is not None else None
    if inner is None or inner.inputs[0] is None or m.axes(node) is None or m.axes(node) != m.axes(inner):
        return False
    draft = rewriting.draft("squeezes", node)
    draft.replace(node.outputs[0], inner.inputs[0])
    rewriting.propose(draft)
    return True
