"""INT8 weights, symmetric per output channel: the scales now, the elements when they are written.

Scale of channel c: max |w[..., c]| / 127 (one step in real units), or the fraction of it that gives the
smallest squared error over the channel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import numerics
from passes.weights import Constant

Array = np.ndarray[Any, np.dtype[Any]]

CLIP_FRACTIONS = tuple(float(step) for step in np.linspace(1.0, 0.7, 13))
"""Fractions of the largest magnitude that the MSE search tries; below 0.7 no real weight gained."""

SEVEN_BITS = dataclasses.replace(numerics.INT8, name="int8 in seven bits", lowest=-64, highest=64)
"""For AVX2 without VNNI: its vpmaddubsw adds two uint8 * int8 products in saturating int16, and
2 * 255 * 127 overflows it, while 2 * 255 * 64 = 32640 does not."""


@dataclasses.dataclass(frozen=True)
class ChannelWeight:
    """A weight on its INT8 grid.

    Attributes:
        scale: (channels,) float32, one step in real units.
        quantized: int8 elements shaped like the weight, evaluated when read.
        axis: The channel axis.
        zero_channels: Output channels whose weights are all zero.
    """

    scale: Array
    quantized: ir.TensorProtocol
    axis: int
    zero_channels: int


def to_int8(
    weight: Constant,
    axis: int,
    search_clip: bool,
    row_scale: Array | None = None,
    grid: numerics.Format = numerics.INT8,
) -> ChannelWeight:
    """Quantize a weight.

    Args:
        weight: (in, out) or (out, in / groups, *kernel), any float type.
        axis: Axis of the output channels.
        search_clip: Whether to search the clipping fraction with the smallest squared error per channel.
        row_scale: (in,) factors to multiply a MatMul's weight rows with first (SmoothQuant), or None.
        grid: INT8, or SEVEN_BITS for processors whose kernels saturate.

    Raises:
        ValueError: When the weight holds NaN or infinity.
    """
    by_channel = _rows(weight, axis, row_scale)
    if not np.isfinite(by_channel).all():
        raise ValueError(f"weight '{weight.name}' holds NaN or infinity")
    scale = scales_of(by_channel, search_clip, grid)
    broadcast = [1] * len(weight.shape)
    broadcast[axis] = -1

    def evaluate() -> ir.TensorProtocol:
        values = np.asarray(weight.numpy(), np.float32)
        if row_scale is not None:
            values = values * row_scale[:, None]
        steps = numerics.quantize(values, scale.reshape(broadcast), numerics.INT8)
        return ir.tensor(np.clip(steps, np.int8(grid.lowest), np.int8(grid.highest)))

    lazy = ir.LazyTensor(evaluate, dtype=ir.DataType.INT8, shape=ir.Shape(weight.shape))
    return ChannelWeight(scale, lazy, axis, int((np.abs(by_channel).max(axis=1) == 0).sum()))


def scales_of(by_channel: Array, search_clip: bool, grid: numerics.Format) -> Array:
    """(channels,) float32 steps for (channels, everything else) numbers."""
    scale = numerics.symmetric_scale(np.abs(by_channel).max(axis=1), grid).astype(np.float32)
    return _least_error(by_channel, scale, grid) if search_clip else scale


def _rows(weight: Constant, axis: int, row_scale: Array | None) -> Array:
    """(channels, everything else) float32."""
    values = np.asarray(weight.numpy(), np.float32)
    if row_scale is not None:
        values = values * row_scale[:, None]
    rows: Array = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return rows


def _least_error(rows: Array, scale: Array, grid: numerics.Format) -> Array:
    best = scale
    least = np.full(len(scale), np.inf)
    for fraction in CLIP_FRACTIONS:
        tried = scale * np.float32(fraction)
        steps = np.clip(np.rint(rows / tried[:, None]), grid.lowest, grid.highest)
        error = np.square(steps * tried[:, None] - rows).sum(axis=1)
        best = np.where(error < least, tried, best)
        least = np.minimum(least, error)
    return best.astype(np.float32)
