"""GPTQ: rounding a weight element by element, each error made good by the elements not yet rounded.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2022), with scales fixed beforehand and elements taken in order of falling input energy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from passes import numerics
from passes.quantize._blocks import SYMMETRIC_ZERO, Blocks, quantize_blocks
from passes.quantize._scales import chooser
from passes.quantize._tiles import to_float32

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

DAMPING = 0.01
"""Part of the mean input energy that is added to every input's own: inputs that calibration never reached
would otherwise have no cost at all."""

PANEL = 32
"""Rows rounded before their errors are passed on to all later rows in one matrix product."""


def quantize_calibrated(
    weight: Array,
    axis: int,
    block: int,
    moments: Float64,
    *,
    scale_dtype: npt.DTypeLike,
    asymmetric: bool,
    signed: bool,
    by_column: bool,
) -> Blocks:
    """Like `quantize_blocks`, with scales fitted to and codes rounded for the inputs that `moments` describes.

    Args:
        weight: Two dimensions, float32, float16 or bfloat16; `weight.shape[axis]` is a multiple of `block`.
        axis: The summed axis.
        block: Elements along it per scale.
        moments: `(K, K)`, as `input_moments` gives it.
        scale_dtype: As for `quantize_blocks`, like those after it.
    """
    values = to_float32(weight if axis == 0 else weight.T)
    importance = np.diag(damped(moments)).astype(np.float32).reshape(-1, block)
    choose = chooser("gptq", scale_dtype, asymmetric=asymmetric, importance=importance)
    start = quantize_blocks(values, 0, block, choose, scale_dtype=scale_dtype, asymmetric=asymmetric)
    zero_points = start.zero_points
    if zero_points is None:
        zero_points = np.full(start.scales.shape, SYMMETRIC_ZERO, np.uint8)
    codes = round_with_feedback(values, moments, start.scales.astype(np.float32), zero_points, block)
    column_major = axis != 0 or by_column
    placed = codes.T if column_major else codes
    scales, zeros = (item.T if column_major else item for item in (start.scales, zero_points))
    packed = numerics.pack_4bit(placed)
    return Blocks(
        packed ^ np.uint8(0x88) if signed else packed,
        np.ascontiguousarray(scales),
        np.ascontiguousarray(zeros) if asymmetric else None,
    )


def round_with_feedback(
    weight: Float32, moments: Float64, scales: Float32, zero_points: Bytes, block: int
) -> Bytes:
    """Codes 0…15 of `weight` that keep `X @ weight` rather than `weight`.

    Args:
        weight: `(K, N)`, K a multiple of `block`.
        moments: `(K, K)`, the calibration inputs' `X.T @ X / samples`.
        scales: `(K / block, N)`, as stored.
        zero_points: `(K / block, N)`, 0…15.
        block: Elements along K per scale.

    Returns:
        `(K, N)` uint8.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _inverse_factor(damped(moments)[np.ix_(order, order)])
    remaining = weight[order].copy()
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, len(order), PANEL):
        stop = min(start + PANEL, len(order))
        errors = np.empty((stop - start, weight.shape[1]), np.float32)
        for row in range(start, stop):
            source = order[row]
            scale, zero = scales[source // block], zero_points[source // block].astype(np.float32)
            code = np.clip(np.rint(remaining[row] / scale) + zero, 0, 15)
            codes[source] = code
            error = (remaining[row] - (code - zero) * scale) / factor[row, row]
            remaining[row + 1 : stop] -= factor[row, row + 1 : stop, None] * error
            errors[row - start] = error
        remaining[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def damped(moments: Float64) -> Float64:
    """`moments` with `DAMPING` of the mean energy added on the diagonal."""
    mean = float(np.mean(np.diag(moments)))
    return moments + np.eye(len(moments)) * (DAMPING * mean if mean > 0 else 1.0)


def _inverse_factor(moments: Float64) -> Float32:
    """Upper-triangular U with `U.T @ U = inverse(moments)`."""
    inverse = np.linalg.inv(moments)
    # inverse = L @ L.T with L lower; the upper factor of the same product is the transpose.
    return np.ascontiguousarray(np.linalg.cholesky(inverse).T.astype(np.float32))
