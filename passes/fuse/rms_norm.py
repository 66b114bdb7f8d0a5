"""RMS norm: x over the root of its mean square, times a scale, in one operator.

Before: y = x * Reciprocal(Sqrt(ReduceMean(x * x, last axis) + epsilon)) * scale
After:  y = RMSNormalization(x, scale, axis=-1, epsilon)          (ONNX, opset 23)

The square may be Pow or Mul, the division Div, Reciprocal or 1 / Sqrt, the scale on either side or absent
(ones are written), and may itself be computed (1 + weight). A widening Cast in front and a narrowing one
behind are taken in: the operator computes in float32 either way (stash_type). Source: Zhang and Sennrich,
2019.

Leaves alone: means over other axes than the last, and parts that are used elsewhere too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.fuse._moments import mean_square, root
from passes.rewriting import Rewriting, rewrite


class FuseRmsNorm(Pass):
    """Write RMS normalization as one operator (opset 23)."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every RMS normalization of the main graph."""
        return rewrite(model, context, ("rms_norm",), _match)


def _match(rewriting: Rewriting) -> None:
    for mean in rewriting.nodes("ReduceMean"):
        x = mean_square(mean)
        if x is None or m.made_by(x, "Sub") is not None:
            continue
        last = (m.rank(x) or 1) - 1
        if m.axes(mean) not in ((-1,), (last,)) or m.attribute(mean, "keepdims", 1) != 1:
            rewriting.miss("rms_norm", mean, f"the mean is over axes {m.axes(mean)}, needs the last, kept")
            continue
        found = root(mean.outputs[0])
        if found is None:
            continue
        normal = found.divides(x)
        if normal is None:
            rewriting.miss("rms_norm", mean, "the root does not divide what was squared")
            continue
        _write(rewriting, mean, x, found.epsilon, normal)


def _write(rewriting: Rewriting, mean: ir.Node, x: ir.Value, epsilon: float, normal: ir.Value) -> None:
    draft = rewriting.draft("rms_norm", mean, least_opset=23)
    wide = normal.dtype
    narrowed = m.only_user(normal)
    source, output = x, normal
    widening = m.made_by(x, "Cast")
    if narrowed is not None and narrowed.op_type == "Cast" and widening is not None:
        narrow = widening.inputs[0]
        if narrow is not None and narrow.dtype == narrowed.outputs[0].dtype:
            source, output = narrow, narrowed.outputs[0]
    scale, output = _scaled(output)
    if scale is None:
        size = m.static(x, -1)
        dtype = output.dtype or wide
        if size is None or dtype is None:
            rewriting.miss("rms_norm", mean, "the last dimension is not known, needs a number for the scale")
            return
        scale = draft.constant(np.ones(size, dtype.numpy()), f"ones_{size}")
    draft.replace(output, draft.op("RMSNormalization", [source, scale], axis=-1, epsilon=epsilon, stash_type=1))
    rewriting.propose(draft)


def _scaled(value: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    """(scale of rank 1, product) if `value` is only used to be multiplied by one, else (None, value)."""
    mul = m.only_user(value)
    if mul is None or mul.op_type != "Mul":
        return None, value
    other = mul.inputs[1] if mul.inputs[0] is value else mul.inputs[0]
    if other is None or m.rank(other) != 1 or other.dtype != value.dtype:
        return None, value
    if not m.same_dimension(m.dimension(other, 0), m.dimension(value, -1)):
        return None, value
    return other, mul.outputs[0]
