"""Attention written out as two products and a softmax, the spelling that builders have the fewest steps for.

Before: y = Attention<scale = s>(q, k, v)           q, k, v: (batch, heads, tokens, size), or
                                                    (batch, tokens, heads · size), then cut into heads
After:  y = MatMul(Softmax(MatMul(q * s, Transpose<0, 1, 3, 2>(k))), v)

TensorRT for RTX fuses this form into the same kernel as the operator, and needs no copy of its result: the operator
comes with one. `fuse.attention` in front of this pass brings every spelling that it knows into one.

Leaves alone: masks, causal attention, caches, soft capping, and fewer key heads than query heads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.draft import Draft
from passes.rewriting import Rewriting, rewrite

PATTERN = "plain_attention"


class PlainAttention(Pass):
    """Write attentions without a mask as two matrix products and a softmax."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite every such attention of the main graph."""
        return rewrite(model, context, (PATTERN,), _match)


def _match(rewriting: Rewriting) -> None:
    for attention in rewriting.nodes("Attention"):
        reason = _refusal(attention)
        if reason:
            rewriting.miss(PATTERN, attention, reason)
            continue
        _write(rewriting, attention)


def _write(rewriting: Rewriting, attention: ir.Node) -> None:
    draft = rewriting.draft(PATTERN, attention, least_opset=13)
    query, key, value = (_heads(draft, one, _count(attention)) for one in attention.inputs[:3] if one is not None)
    scale, kind = _scale(attention), attention.outputs[0].dtype
    assert scale is not None
    assert kind is not None
    number = draft.constant(np.array(scale, kind.numpy()), "attention_scale")
    scores = draft.op("MatMul", [draft.op("Mul", [query, number]), draft.op("Transpose", [key], perm=[0, 1, 3, 2])])
    y = draft.op("MatMul", [draft.op("Softmax", [scores], axis=-1), value])
    if _count(attention):
        y = draft.op("Transpose", [y], perm=[0, 2, 1, 3])
        y = draft.op("Reshape", [y, draft.constant(np.array([0, 0, -1], np.int64), "together")])
    draft.replace(attention.outputs[0], y)
    rewriting.propose(draft)


def _heads(draft: Draft, value: ir.Value, count: int) -> ir.Value:
    """The value as `(batch, heads, tokens, size)`; as it is where `count` is 0."""
    if not count:
        return value
    cut = draft.op("Reshape", [value, draft.constant(np.array([0, 0, count, -1], np.int64), "heads")])
    return draft.op("Transpose", [cut], perm=[0, 2, 1, 3])


def _count(attention: ir.Node) -> int:
    """Heads that inputs of rank 3 are cut into; 0 where they have rank 4."""
    return int(m.attribute(attention, "q_num_heads", 0)) if m.rank(attention.inputs[0]) == 3 else 0


def _scale(attention: ir.Node) -> float | None:
    given = m.attribute(attention, "scale", None)
    if given is not None:
        return float(given)
    size = m.static(attention.inputs[0], -1)
    return None if size is None else float(size // (_count(attention) or 1)) ** -0.5


def _refusal(attention: ir.Node) -> str:
    query, key, value = attention.inputs[:3]
    ranks = {m.rank(one) for one in (query, key, value)}
    if ranks not in ({3}, {4}):
        return "its inputs are not all of rank 3 or all of rank 4"
    if any(one is not None for one in attention.inputs[3:]):
        return "it has a mask or a cache"
    if any(output.uses() or output.is_graph_output() for output in attention.outputs[1:]):
        return "it gives out a cache or its scores"
    if m.attribute(attention, "is_causal", 0):
        return "it is causal"
    if m.attribute(attention, "softcap", 0.0):
        return "it caps its scores"
    if ranks == {4} and not m.same_dimension(m.dimension(query, 1), m.dimension(key, 1)):
        return "it has fewer key heads than query heads"
    if ranks == {3} and m.attribute(attention, "kv_num_heads", 0) != _count(attention):
        return "it has fewer key heads than query heads"
    if _scale(attention) is None or attention.outputs[0].dtype is None:
        return "its heads' size or its type is not known"
    return ""
