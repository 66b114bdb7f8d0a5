"""A strided convolution on few channels, computed on two-by-two blocks of pixels.

Before: y = Conv<kernel (k, k), strides (2, 2)>(x, w)                 x: (batch, c, height, width)
After:  y = Conv<strides (1, 1)>(SpaceToDepth<2>(x), w')              (batch, 4 c, height / 2, width / 2)

Row 2 i + u of the image is row r of block i + q, where u = 2 q + r and r is 0 or 1; so a tap at u from the output's
place becomes the tap q of the channels that hold row r, and w' holds each weight of w once, zeros between them.
The 7 × 7 convolution on 3 channels that opens a ResNet becomes a 4 × 4 on 12: matrix units work in groups of 8 or
16 channels, of which 3 fill little. Source: Ying et al., "Image Classification at Supercomputer Scale", 2018.

A zero of w' meets pixels that w did not read: one that is infinite or NaN spoils outputs beside those it did
before.

Leaves alone: more than `most_channels` channels, groups, dilation, strides other than 2, weights that are no
constants, and images whose height and width are not known to be even.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

PATTERN = "stem_space_to_depth"
BLOCK = 2


class StemSpaceToDepth(Pass):
    """Compute a network's first strided convolution on blocks of pixels instead of pixels."""

    most_channels: int = pydantic.Field(
        default=4, ge=1, le=16, description="Convolutions on more channels fill the matrix units as they are."
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite every such convolution of the main graph."""

        def match(rewriting: Rewriting) -> None:
            for conv in rewriting.nodes("Conv"):
                channels = m.dimension(conv.inputs[1], 1)
                if not isinstance(channels, int) or channels > self.most_channels:
                    continue
                reason = _refusal(conv)
                if reason:
                    rewriting.miss(PATTERN, conv, reason)
                else:
                    _write(rewriting, conv)

        return rewrite(model, context, (PATTERN,), match)


def _refusal(conv: ir.Node) -> str:
    if m.rank(conv.inputs[0]) != 4:
        return f"the image's rank is {m.rank(conv.inputs[0])}, needs 4"
    strides = list(m.attribute(conv, "strides", [1, 1]))
    if strides != [BLOCK, BLOCK]:
        return f"strides are {strides}, needs [2, 2]"
    if m.attribute(conv, "group", 1) != 1:
        return f"the convolution has {m.attribute(conv, 'group')} groups, needs 1"
    if any(step != 1 for step in m.attribute(conv, "dilations", [1, 1])):
        return f"dilations are {list(m.attribute(conv, 'dilations'))}, needs [1, 1]"
    if m.attribute(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"padding is {m.attribute(conv, 'auto_pad')}, needs explicit pads"
    sizes = [m.dimension(conv.inputs[0], axis) for axis in (2, 3)]
    if not all(isinstance(size, int) and size % BLOCK == 0 for size in sizes):
        return f"the image is {sizes[0]} × {sizes[1]}, needs even numbers"
    if m.constant(conv.inputs[1]) is None:
        return "the weight is no constant, or a large one"
    return ""


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis of the new convolution.

    Attributes:
        taps: Its kernel's length, in blocks.
        offset: Where tap 0 of the old kernel lies in the new one, in pixels.
        before: Padding in front, in blocks.
        after: Padding behind, in blocks; negative where the last block is not read.
    """

    taps: int
    offset: int
    before: int
    after: int


def _axis(size: int, kernel: int, before: int, after: int) -> _Axis:
    """The axis for `size` pixels and an old kernel of `kernel` taps with that padding."""
    first, last = -before // BLOCK, (kernel - 1 - before) // BLOCK
    taps = last - first + 1
    outputs = (size + before + after - kernel) // BLOCK + 1
    return _Axis(taps, -before - BLOCK * first, -first, outputs - 1 + taps - size // BLOCK + first)


def _write(rewriting: Rewriting, conv: ir.Node) -> None:
    image, weight = conv.inputs[0], m.constant(conv.inputs[1])
    assert image is not None
    assert weight is not None
    before = list(m.attribute(conv, "pads", [0, 0, 0, 0]))
    if m.attribute(conv, "auto_pad", "NOTSET") == "VALID":
        before = [0, 0, 0, 0]
    axes = [
        _axis(m.static(image, 2 + axis) or 0, weight.shape[2 + axis], before[axis], before[2 + axis])
        for axis in (0, 1)
    ]
    if any(axis.before < 0 or axis.after < 0 for axis in axes):
        rewriting.miss(PATTERN, conv, "the last rows or columns are not read")
        return
    draft = rewriting.draft(PATTERN, conv)
    name = str(conv.inputs[1].name if conv.inputs[1] is not None else "weight")
    inputs = [
        draft.op("SpaceToDepth", [image], blocksize=BLOCK),
        draft.constant(_blocked(weight, axes), f"{name}_blocked"),
        *conv.inputs[2:],
    ]
    attributes: dict[str, Any] = {
        "kernel_shape": [axis.taps for axis in axes],
        "pads": [*(axis.before for axis in axes), *(axis.after for axis in axes)],
        "strides": [1, 1],
    }
    draft.replace(conv.outputs[0], draft.op("Conv", inputs, **attributes))
    rewriting.propose(draft)


def _blocked(weight: np.ndarray[Any, Any], axes: list[_Axis]) -> np.ndarray[Any, Any]:
    """`(out, c, k, k)` as `(out, 4 c, taps, taps)`, channels in SpaceToDepth's order: row, column, channel."""
    out, channels, height, width = weight.shape
    rows, columns = axes
    wide = np.zeros((out, channels, BLOCK * rows.taps, BLOCK * columns.taps), weight.dtype)
    wide[:, :, rows.offset : rows.offset + height, columns.offset : columns.offset + width] = weight
    split = wide.reshape(out, channels, rows.taps, BLOCK, columns.taps, BLOCK)
    return np.ascontiguousarray(
        split.transpose(0, 3, 5, 1, 2, 4).reshape(out, BLOCK * BLOCK * channels, rows.taps, columns.taps)
    )
