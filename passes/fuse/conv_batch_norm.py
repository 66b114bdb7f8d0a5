"""Convolution + batch norm: the norm folded into the convolution's weights.

Before: y = (Conv(x, w, b) - mean) / sqrt(var + epsilon) * scale + shift
After:  y = Conv(x, w * f, (b - mean) * f + shift)          f = scale / sqrt(var + epsilon), per output channel

Also ConvTranspose. onnxscript has the same rule (rewriter.rules.common); this one computes the factor in float64
and is checked against the unfused graph before it is kept. Source: Jacob et al., 2018, section 3.2.

Leaves alone: norms in training mode, weights that are no constants, and products used elsewhere too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

WEIGHT_LIMIT = 1 << 28
"""Elements of a weight that is still read to be scaled: 1 GiB of float32."""


class FuseConvBatchNorm(Pass):
    """Fold batch normalization into the convolution in front of it."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold every batch norm of the main graph that follows a convolution."""
        return rewrite(model, context, ("conv_batch_norm",), _match)


def _match(rewriting: Rewriting) -> None:
    for norm in rewriting.nodes("BatchNormalization"):
        conv = m.made_by(norm.inputs[0], "Conv", "ConvTranspose")
        if conv is None:
            continue
        reason = _refusal(norm, conv)
        if reason:
            rewriting.miss("conv_batch_norm", norm, reason)
            continue
        _write(rewriting, norm, conv)


def _refusal(norm: ir.Node, conv: ir.Node) -> str:
    if m.attribute(norm, "training_mode", 0):
        return "the norm is in training mode"
    if not m.is_private(conv.outputs[0]):
        return "the convolution's output is used elsewhere too"
    if not m.is_constant(conv.inputs[1]) or (_bias(conv) and not m.is_constant(_bias(conv))):
        return "the convolution's weights are not constant"
    if not all(m.is_constant(value) for value in norm.inputs[1:5]):
        return "the norm's statistics are not constant"
    if conv.op_type == "ConvTranspose" and m.attribute(conv, "group", 1) != 1:
        return f"ConvTranspose has {m.attribute(conv, 'group')} groups, needs 1"
    return ""


def _bias(conv: ir.Node) -> ir.Value | None:
    return conv.inputs[2] if len(conv.inputs) > 2 else None


def _write(rewriting: Rewriting, norm: ir.Node, conv: ir.Node) -> None:
    scale, shift, mean, variance = (m.constant(value) for value in norm.inputs[1:5])
    weight = m.constant(conv.inputs[1], limit=WEIGHT_LIMIT)
    bias = m.constant(_bias(conv))
    if weight is None or scale is None or shift is None or mean is None or variance is None:
        rewriting.miss("conv_batch_norm", norm, f"a weight is larger than {WEIGHT_LIMIT} elements")
        return
    wide = np.float64
    factor = scale.astype(wide) / np.sqrt(variance.astype(wide) + m.attribute(norm, "epsilon", 1e-5))
    along = (1, -1) if conv.op_type == "ConvTranspose" else (-1, 1)
    scaled = weight.astype(wide) * factor.reshape(*along, *[1] * (weight.ndim - 2))
    moved = ((0 if bias is None else bias.astype(wide)) - mean.astype(wide)) * factor + shift.astype(wide)
    draft = rewriting.draft("conv_batch_norm", norm)
    name = conv.inputs[1].name if conv.inputs[1] is not None else "weight"
    inputs = [
        conv.inputs[0],
        draft.constant(scaled.astype(weight.dtype), f"{name}_folded"),
        draft.constant(moved.astype(weight.dtype), f"{name}_folded_bias"),
    ]
    attributes = {key: attr.value for key, attr in conv.attributes.items()}
    draft.replace(norm.outputs[0], draft.op(conv.op_type, inputs, **attributes))
    rewriting.propose(draft)
