"""INT8 weights rounded so that the layer's output errs least on real activations, and the bias corrected for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.numerics import Format
from passes.quantize._channel_weights import ChannelWeight, scales_of
from passes.quantize._gptq import round_with_feedback
from passes.quantize._inputs import Inputs

Array = np.ndarray[Any, np.dtype[Any]]


def least_output_error(weight: Array, inputs: Inputs, grid: Format, *, search_clip: bool) -> ChannelWeight:
    """A weight on its INT8 grid, rounded for the least squared output error.

    Args:
        weight: (in, out) real numbers, times the smoothing factors.
        inputs: What the quantized layer is given.
        grid: INT8, or its seven-bit part.
        search_clip: Whether to search each channel's clipping.

    Raises:
        ValueError: When the weight holds NaN or infinity, or the squares of its input do.
    """
    if not np.isfinite(weight).all():
        raise ValueError("its weight holds NaN or infinity")
    if not np.isfinite(inputs.moments.own).all():
        raise ValueError("squares of its input exceed float32 on the calibration data; take rounding: nearest")
    values = weight.astype(np.float32)
    scale = scales_of(values.T, search_clip, grid)

    def whole(steps: Array, block: int) -> Array:
        return np.clip(np.rint(steps), np.float32(grid.lowest), np.float32(grid.highest))

    steps = round_with_feedback(values, inputs.moments.own, scale[None, :], len(values), whole)
    return ChannelWeight(scale, ir.tensor(steps.astype(np.int8)), 1, int((np.abs(values).max(axis=0) == 0).sum()))


def bias_correction(exact: Array, quantized: Array, inputs: Inputs) -> Array:
    """(out,) mean of what a layer's output lost, to be added to its bias.

    Args:
        exact: (in, out) the weight in floating point, times the smoothing factors.
        quantized: (in, out) the weight as the engine sees it.
        inputs: What the quantized layer is given.
    """
    lost: Array = inputs.exact_mean @ exact - inputs.seen_mean @ quantized
    return lost.astype(np.float32)
