"""Q/K/V matmul merging: projections of the same value side by side in one matrix product.

Before: q = MatMul(x, wq), k = MatMul(x, wk), v = MatMul(x, wv)
After:  q, k, v = Split(MatMul(x, Concat(wq, wk, wv)), last axis)

Not part of the default list. On ONNX Runtime's CPU the Split costs more than the longer product wins (MiniLM,
8 x 128 tokens, one thread: 0.885 of plain ONNX Runtime with it, 0.874 without); TensorRT merges such products by
itself.

Leaves alone: weights that are not constant, of another rank than 2, or of different types.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

WEIGHT_LIMIT = 1 << 28
"""Elements of a weight that is still read to be merged: 1 GiB of float32."""


class FuseQkvMerge(Pass):
    """Merge three matrix products of one value, as in front of an attention, into one."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Merge every triple of the main graph."""
        return rewrite(model, context, ("qkv_merge",), _match)


def _match(rewriting: Rewriting) -> None:
    groups: dict[ir.Value, list[ir.Node]] = {}
    for matmul in rewriting.nodes("MatMul"):
        if matmul.inputs[0] is not None and not m.is_constant(matmul.inputs[0]):
            groups.setdefault(matmul.inputs[0], []).append(matmul)
    for x, group in groups.items():
        if len(group) != 3:
            continue
        weights = [m.constant(node.inputs[1], limit=WEIGHT_LIMIT) for node in group]
        found = [weight for weight in weights if weight is not None and weight.ndim == 2]
        if len(found) != 3 or len({weight.dtype for weight in found}) != 1:
            rewriting.miss("qkv_merge", group[0], "the three weights are not constant matrices of one type")
            continue
        draft = rewriting.draft("qkv_merge", group[0], least_opset=13)
        name = group[0].inputs[1].name if group[0].inputs[1] is not None else "weight"
        merged = draft.op("MatMul", [x, draft.constant(np.concatenate(found, axis=1), f"{name}_merged")])
        sizes = draft.constant(np.array([weight.shape[1] for weight in found], np.int64), "qkv_sizes")
        parts = draft.ops("Split", [merged, sizes], 3, axis=-1)
        for node, part in zip(group, parts, strict=True):
            draft.replace(node.outputs[0], part)
        rewriting.propose(draft)
