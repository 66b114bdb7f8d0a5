"""Attention: query times key, mask, softmax, times value, in one operator.

Before: y = MatMul(Softmax(MatMul(q * s, Transpose(k) * t) + mask), v), NaN guard behind Softmax or not
After:  y = Attention(q, k, v, mask, scale=s * t)

Self and cross attention; masks as Add or Where, any number of them; the scale anywhere, as Mul or Div; keys
turned by one Transpose or by Reshape-Transpose-Reshape; key and value heads repeated by Expand (grouped and
multi query); keys and values behind a cache's Concat; scores capped by Tanh; no axis of heads at all. A single
mask that is exactly causal becomes `is_causal`. Where query, key and value come straight from (batch, tokens,
heads * head_dim) and the output goes back to it, the transposes vanish too.

Leaves alone: a softmax over another axis than the last; scores or weights that are read elsewhere; a NaN
guard whose mask may be minus infinity, since the guard gives 0 where `Attention` gives NaN; precisions for
which the target has no fused attention.

Both dialects get the standard operator (ONNX Attention, opset 23). On ONNX Runtime's CPU it is as fast as
com.microsoft.MultiHeadAttention with a mask (MiniLM, 8 x 128 tokens, 1 thread: 25.0 ms against 25.9 to 30.1
ms of 256 ms in six layers) and takes cross attention, grouped heads and 4-D inputs alike. The mask as one
more column of each head's query and key, so that MultiHeadAttention runs without one, measured 1.01 (one
thread) and 0.94 (two) of the operator's time before the wider projections are paid for: 1 % of a model at
best, and INT8 keys would then take their range from the mask.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.draft import Draft
from passes.fuse._attention_match import HEADS_FIRST, Mask, Match, Mismatch, match
from passes.fuse._causal import is_causal
from passes.fuse._mask import finite_mask
from passes.rewriting import Rewriting, rewrite

PRECISION_NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}


class FuseAttention(Pass):
    """Write scaled dot-product attention as one `Attention` operator (opset 23)."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every attention of the main graph that the target can run fused."""
        return rewrite(model, context, ("attention",), _match_all)


def _match_all(rewriting: Rewriting) -> None:
    for softmax in rewriting.nodes("Softmax"):
        try:
            found = match(softmax)
            if found is not None:
                if len(found.masks) == 1 and is_causal(found.masks[0]):
                    found = dataclasses.replace(found, masks=(), causal=True)
                _check(found, rewriting.context)
                rewriting.propose(_write(found, rewriting))
        except Mismatch as why:
            rewriting.miss("attention", softmax, str(why))


def _check(found: Match, context: PassContext) -> None:
    precision = PRECISION_NAMES.get(found.output.dtype or ir.DataType.UNDEFINED, str(found.output.dtype))
    if precision not in context.target.attention:
        have = ", ".join(context.target.attention) or "none"
        raise Mismatch(f"{context.target.title} has no fused attention in {precision} (it has: {have}); cast first")
    for mask in found.masks:
        if found.rank == 3 and m.rank(mask.value) not in (2, 3):
            raise Mismatch(f"the mask has rank {m.rank(mask.value)}, needs 2 or 3 as query and key have 3")
    # ONNX Runtime's Attention gives 0 for a row masked by minus infinity, as the guard does; TensorRT's
    # gives NaN.
    safe = context.target.dialect == "onnxruntime" or all(is_finite(mask) for mask in found.masks)
    if found.guard is not None and not safe:
        raise Mismatch("the mask may be minus infinity, and the guard then gives 0 where Attention gives NaN")


def is_finite(mask: Mask) -> bool:
    """Whether a mask's values are surely finite, so that no row of the softmax can be NaN because of it."""
    if mask.kept_where is not None:
        number = m.scalar(mask.low)
        return number is not None and bool(np.isfinite(number))
    return finite_mask(mask.value)


def _write(found: Match, rewriting: Rewriting) -> Draft:
    draft = rewriting.draft("attention", found.softmax, least_opset=23)
    settings: dict[str, Any] = {
        "scale": found.scale,
        "softcap": found.softcap or None,
        "is_causal": 1 if found.causal else None,
        # 1 is float32 (TensorProto): the graph widened its scores around the softmax.
        "softmax_precision": 1 if found.in_float32 and found.output.dtype != ir.DataType.FLOAT else None,
    }
    flat = _flat(found)
    if flat is not None:
        query, key, value, output = flat
        mask = _mask(draft, found, rewriting, query, axis=1)
        heads, kv_heads = m.static(found.query, 1), m.static(found.value, 1)
        fused = draft.op(
            "Attention", [query, key, value, mask], q_num_heads=heads, kv_num_heads=kv_heads, **settings
        )
        draft.replace(output, fused)
        return draft
    key = found.key
    if found.heads_last:
        key = draft.op("Transpose", [key], perm=list(HEADS_FIRST))
    elif found.key_is_transposed:
        key = draft.op("Transpose", [key], perm=[0, 1, 3, 2] if found.rank == 4 else [0, 2, 1])
    mask = _mask(draft, found, rewriting, found.query, axis=found.tokens_axis)
    if found.rank == 3:
        settings |= {"q_num_heads": 1, "kv_num_heads": 1}
        if mask is not None and max(m.rank(term.value) or 0 for term in found.masks) == 3:
            mask = draft.op("Unsqueeze", [mask, draft.constant(np.ones(1, np.int64), "one")])
    draft.replace(found.output, draft.op("Attention", [found.query, key, found.value, mask], **settings))
    return draft


def _flat(found: Match) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value] | None:
    """(query, key, value, output) as (batch, tokens, heads * head_dim), if all four have such a form
    already."""
    if found.key_is_transposed:
        return None
    query, query_scale = _merged(found.query)
    key, key_scale = _merged(found.key, heads_last=found.heads_last)
    value, value_scale = _merged(found.value)
    turn = m.only_user(found.output)
    if query is None or key is None or value is None or turn is None or turn.op_type != "Transpose":
        return None
    if (query_scale, key_scale, value_scale) != (1.0, 1.0, 1.0):
        return None
    if tuple(m.attribute(turn, "perm", ())) != HEADS_FIRST or turn.outputs[0].is_graph_output():
        return None
    back = m.only_user(turn.outputs[0])
    if back is None or back.op_type != "Reshape" or m.rank(back.outputs[0]) != 3:
        return None
    heads, width = m.static(found.output, 1), m.static(found.output, 3)
    if heads is None or width is None or m.static(back.outputs[0], 2) != heads * width:
        return None
    if not all(m.same_dimension(m.dimension(back.outputs[0], a), m.dimension(query, a)) for a in (0, 1)):
        return None
    return query, key, value, back.outputs[0]


def _merged(value: ir.Value, *, heads_last: bool = False) -> tuple[ir.Value | None, float]:
    """The (batch, tokens, heads * head_dim) value that was split into heads, with its scale."""
    split: ir.Value | None = value
    if not heads_last:
        turn = m.made_by(value, "Transpose")
        if turn is None or tuple(m.attribute(turn, "perm", ())) != HEADS_FIRST:
            return None, 1.0
        split = turn.inputs[0]
    if split is None:
        return None, 1.0
    split, scale = m.unscaled(split)
    node = m.made_by(split, "Reshape")
    merged = node.inputs[0] if node is not None else None
    if merged is None or m.rank(merged) != 3 or m.rank(split) != 4:
        return None, 1.0
    heads, width = m.static(split, 2), m.static(split, 3)
    if heads is None or width is None or m.static(merged, 2) != heads * width:
        return None, 1.0
    if not all(m.same_dimension(m.dimension(merged, axis), m.dimension(split, axis)) for axis in (0, 1)):
        return None, 1.0
    return merged, scale


def _mask(draft: Draft, found: Match, rewriting: Rewriting, query: ir.Value, axis: int) -> ir.Value | None:
    """The sum of the match's masks, in the score's type, spread over the query's tokens where needed."""
    total: ir.Value | None = None
    shapes: list[ir.Value] = []
    for mask in found.masks:
        value = mask.value
        if mask.kept_where is not None:
            assert mask.low is not None
            dtype = (found.query.dtype or ir.DataType.FLOAT).numpy()
            zero = draft.constant(np.zeros((), dtype), "attend")
            low = mask.low
            if low.dtype != found.query.dtype:
                low = draft.constant(np.asarray(m.scalar(low)).astype(dtype), "masked")
            value = draft.op("Where", [value, zero, low] if mask.kept_where else [value, low, zero])
        elif value.dtype != found.query.dtype:
            value = draft.op("Cast", [value], to=int(found.query.dtype or ir.DataType.FLOAT))
        shapes.append(mask.value)
        total = value if total is None else draft.op("Add", [total, value])
    if total is None:
        return None
    total = _floored(draft, found, total)
    tokens = m.dimension(found.query, found.tokens_axis)
    if any(m.same_dimension(m.dimension(shape, -2), tokens) and m.dimension(shape, -1) != 1 for shape in shapes):
        return total
    # ONNX Runtime's Attention wants the mask's second last dimension to be the query's tokens, not 1; TensorRT's
    # attention layer takes that form too.
    source, at = _dimension_source(rewriting.model, tokens) or (query, axis)
    size = draft.op("Shape", [source], start=at, end=at + 1)
    one = draft.constant(np.ones(1, np.int64), "one")
    return draft.op("Expand", [total, draft.op("Concat", [size, one], axis=0)])


def _floored(draft: Draft, found: Match, total: ir.Value) -> ir.Value:
    """The mask with its lowest values raised a little, where it may hold the lowest float.

    ONNX Runtime's Attention gives 0 for a row masked throughout by the lowest float; Softmax gives equal
    weights. Below the lowest float a further addition may also overflow to minus infinity in 16 bits.
    """
    dtype = found.query.dtype or ir.DataType.FLOAT
    if dtype == ir.DataType.BFLOAT16 or (found.guard is not None and not all(map(is_finite, found.masks))):
        return total
    lowest = np.finfo(dtype.numpy()).min
    floor = np.asarray(lowest * 0.9, dtype.numpy())
    node = total.producer()
    if node is not None and node.op_type == "Where" and len(found.masks) == 1:
        choices = [node.inputs[1], node.inputs[2]]
        numbers = [m.scalar(choice) for choice in choices]
        low = min((number for number in numbers if number is not None), default=0.0)
        if None not in numbers:
            if low > floor:
                return total
            condition, raised = node.inputs[0], draft.constant(floor, "lowest_mask")
            draft.drop(total)
            chosen = [raised if n == low else choice for n, choice in zip(numbers, choices, strict=True)]
            return draft.op("Where", [condition, *chosen])
    return draft.op("Max", [total, draft.constant(floor, "lowest_mask")])


def _dimension_source(model: ir.Model, symbol: int | str | None) -> tuple[ir.Value, int] | None:
    """A graph input that has the dimension, so that all layers share one Shape."""
    if not isinstance(symbol, str):
        return None
    for value in model.graph.inputs:
        for axis in range(m.rank(value) or 0):
            if m.dimension(value, axis) == symbol:
                return value, axis
    return None
