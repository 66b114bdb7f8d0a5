"""Convolutions on an odd number of channels, given channels of zeros.

Before: y = Conv(x, w)                        x: (batch, 12, height, width)
After:  y = Conv(Pad(x), w')                  x padded to (batch, 16, height, width), w' with zeros to match

Matrix units work in groups of 8 or 16 channels; where a builder has its fast kernels for whole groups alone, four
channels of zeros cost less than the kernel that takes any number. The sum gains zeros only, so results stay.

Leaves alone: more than `most_channels` channels, a number that is a multiple already, grouped convolutions, and
weights that are no constants.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pydantic

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

PATTERN = "pad_channels"


class PadChannels(Pass):
    """Pad the input channels of convolutions with few of them up to a multiple."""

    multiple: int = pydantic.Field(default=8, ge=2, le=64, description="What the channels are rounded up to.")
    most_channels: int = pydantic.Field(
        default=16, ge=1, le=64, description="Convolutions on more channels are left as they are."
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Pad every such convolution of the main graph."""

        def match(rewriting: Rewriting) -> None:
            for conv in rewriting.nodes("Conv"):
                channels = m.dimension(conv.inputs[1], 1)
                if not isinstance(channels, int) or channels > self.most_channels or not channels % self.multiple:
                    continue
                reason = _refusal(conv)
                if reason:
                    rewriting.miss(PATTERN, conv, reason)
                else:
                    _write(rewriting, conv, -channels % self.multiple)

        return rewrite(model, context, (PATTERN,), match)


def _refusal(conv: ir.Node) -> str:
    if m.attribute(conv, "group", 1) != 1:
        return f"the convolution has {m.attribute(conv, 'group')} groups, needs 1"
    if m.rank(conv.inputs[0]) is None:
        return "the image's rank is not known"
    if m.constant(conv.inputs[1]) is None:
        return "the weight is no constant, or a large one"
    return ""


def _write(rewriting: Rewriting, conv: ir.Node, more: int) -> None:
    image, weight = conv.inputs[0], m.constant(conv.inputs[1])
    assert image is not None
    assert weight is not None
    draft = rewriting.draft(PATTERN, conv, least_opset=11)
    rank = weight.ndim
    ends = np.zeros(2 * rank, np.int64)
    ends[rank + 1] = more
    name = str(conv.inputs[1].name if conv.inputs[1] is not None else "weight")
    widened = np.pad(weight, [(0, more if axis == 1 else 0) for axis in range(rank)])
    padded = draft.op("Pad", [image, draft.constant(ends, "channels_added")])
    attributes = {key: attr.value for key, attr in conv.attributes.items()}
    inputs = [padded, draft.constant(widened, f"{name}_padded"), *conv.inputs[2:]]
    draft.replace(conv.outputs[0], draft.op("Conv", inputs, **attributes))
    rewriting.propose(draft)
