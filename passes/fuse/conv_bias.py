"""Convolution + bias: an addition of one number per channel taken into the convolution.

Before: y = Add(Conv(x, w), b)          b: (channels, 1, 1) or (1, channels, 1, 1) constant
After:  y = Conv(x, w, b)

The activation behind it (Relu, Clip, ...) stays as it is: ONNX Runtime makes its FusedConv, and TensorRT its own
fused layer, from exactly this form; ONNX Runtime's faster blocked layout (NCHWc) is chosen for a plain Conv only.

Leaves alone: convolutions whose output is used elsewhere too, and additions of whole images (residuals).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

BEHIND = {"Relu", "Clip", "LeakyRelu", "HardSigmoid", "Sigmoid", "Tanh", "HardSwish"}


class FuseConvBias(Pass):
    """Take an added bias into the convolution in front of it."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every biased convolution of the main graph."""
        return rewrite(model, context, ("conv_bias", "conv_bias_activation"), _match)


def _match(rewriting: Rewriting) -> None:
    for add in rewriting.nodes("Add"):
        for product, bias in m.operands(add):
            conv = m.made_by(product, "Conv", "ConvTranspose")
            if conv is None or product is None or not m.is_constant(bias):
                continue
            behind = m.only_user(add.outputs[0])
            pattern = "conv_bias_activation" if behind is not None and behind.op_type in BEHIND else "conv_bias"
            rank, channels = m.rank(product), m.static(product, 1)
            array = m.constant(bias)
            if rank is None or channels is None or array is None or array.ndim > rank:
                rewriting.miss(pattern, add, "the number of channels is not known")
                break
            full = array.reshape([1] * (rank - array.ndim) + list(array.shape))
            if full.shape[1] not in (1, channels) or full.size != full.shape[1]:
                rewriting.miss(
                    pattern, add, f"the addend has shape {list(array.shape)}, needs one number per channel"
                )
                break
            if not m.is_private(product):
                rewriting.miss(pattern, add, "the convolution's output is used elsewhere too")
                break
            old = m.constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else None
            if len(conv.inputs) > 2 and old is None:
                rewriting.miss(pattern, add, "the convolution already has a bias that is not constant")
                break
            total = np.broadcast_to(full.reshape(-1), (channels,)) + (0 if old is None else old)
            draft = rewriting.draft(pattern, add)
            constant = draft.constant(np.ascontiguousarray(total.astype(array.dtype)), f"{conv.name}_bias")
            attributes = {key: attr.value for key, attr in conv.attributes.items()}
            draft.replace(
                add.outputs[0], draft.op(conv.op_type, [conv.inputs[0], conv.inputs[1], constant], **attributes)
            )
            rewriting.propose(draft)
            break
