"""Layer norm: a row less its mean, over its standard deviation, scaled and shifted, in one operator.

Before: d = x - ReduceMean(x, last axis), y = d / Sqrt(ReduceMean(d * d, last axis) + epsilon) * scale + bias
After:  y = LayerNormalization(x, scale, bias, axis=-1, epsilon)          (ONNX, opset 17)

The square may be Pow or Mul, the division Div, Reciprocal or 1 / Sqrt; scale and bias on either side; no
bias, or neither. Source: Ba, Kiros and Hinton, 2016.

Leaves alone: means over other axes than the last (a convolution net's channels), and parts that are used
elsewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.fuse._moments import mean_square, root
from passes.rewriting import Rewriting, rewrite


class FuseLayerNorm(Pass):
    """Write layer normalization as one operator (opset 17)."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every layer normalization of the main graph."""
        return rewrite(model, context, ("layer_norm",), _match)


def _match(rewriting: Rewriting) -> None:
    for mean in rewriting.nodes("ReduceMean"):
        centred = mean_square(mean)
        sub = m.made_by(centred, "Sub")
        first = m.made_by(sub.inputs[1], "ReduceMean") if sub is not None else None
        if centred is None or sub is None or first is None or first.inputs[0] is not sub.inputs[0]:
            continue
        x = sub.inputs[0]
        last = (m.rank(x) or 1) - 1
        reduced = {m.axes(mean), m.axes(first)}
        if not reduced <= {(-1,), (last,)} or m.attribute(first, "keepdims", 1) != 1:
            rewriting.miss("layer_norm", mean, f"the means are over axes {m.axes(mean)}, needs the last, kept")
            continue
        found = root(mean.outputs[0])
        normal = found.divides(centred) if found is not None else None
        if found is None or normal is None or x is None:
            rewriting.miss("layer_norm", mean, "the root does not divide what was squared")
            continue
        draft = rewriting.draft("layer_norm", mean, least_opset=17)
        scale, output = _row(normal, "Mul")
        bias, output = _row(output, "Add") if scale is not None else (None, output)
        if scale is None:
            size, dtype = m.static(x, -1), x.dtype
            if size is None or dtype is None:
                rewriting.miss("layer_norm", mean, "the last dimension is not known, needs a number for the scale")
                continue
            scale = draft.constant(np.ones(size, dtype.numpy()), f"ones_{size}")
        inputs = [x, scale] if bias is None else [x, scale, bias]
        draft.replace(output, draft.op("LayerNormalization", inputs, axis=-1, epsilon=found.epsilon))
        rewriting.propose(draft)


def _row(value: ir.Value, op_type: str) -> tuple[ir.Value | None, ir.Value]:
    """(constant of rank 1 that `value` is combined with, result), or (None, value)."""
    node = m.only_user(value)
    if node is None or node.op_type != op_type:
        return None, value
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or m.rank(other) != 1 or not m.is_constant(other):
        return None, value
    if not m.same_dimension(m.dimension(other, 0), m.dimension(value, -1)):
        return None, value
    return other, node.outputs[0]
