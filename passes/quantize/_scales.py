"""Choosing the scale of a 4-bit block: from its range, or by searching for the least squared error."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from passes import numerics
from passes.quantize._blocks import Choose
from passes.quantize._half_quadratic import half_quadratic
from passes.quantize._tiles import Tile

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

Algorithm = Literal["rtn", "mse", "hqq", "gptq"]

CLIP_RATIOS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Parts of a block's range that the search tries as its clipping point."""


def chooser(
    algorithm: Algorithm, scale_dtype: npt.DTypeLike, *, asymmetric: bool, importance: Float32 | None = None
) -> Choose:
    """The way of choosing scales that `algorithm` names; see `least_squares` for `importance`."""
    if algorithm == "rtn":
        return from_range(scale_dtype, asymmetric=asymmetric)
    if algorithm == "hqq":
        return half_quadratic(scale_dtype, asymmetric=asymmetric)
    return least_squares(scale_dtype, asymmetric=asymmetric, importance=importance)


def from_range(scale_dtype: npt.DTypeLike, *, asymmetric: bool) -> Choose:
    """Round to nearest: the block's largest magnitude (or its two ends) lands on the grid's end."""

    def choose(values: Float32, tile: Tile) -> tuple[Array, Bytes | None]:
        high = values.max(axis=1, keepdims=True)
        low = values.min(axis=1, keepdims=True)
        if not (np.isfinite(high).all() and np.isfinite(low).all()):
            raise ValueError("it holds NaN or infinity")
        if asymmetric:
            scale, zero_point = numerics.asymmetric_scale(low, high, numerics.UINT4, scale_dtype)
            return scale, zero_point.astype(np.uint8)
        amax = np.maximum(high, -low)
        return numerics.symmetric_scale(amax, numerics.INT4, scale_dtype), None

    return choose


def least_squares(scale_dtype: npt.DTypeLike, *, asymmetric: bool, importance: Float32 | None = None) -> Choose:
    """The scale with the least (weighted) squared error.

    Each clipping ratio gives a rounding. For each rounding the best scale has a closed form,
    `<x, q> / <q, q>`, and so has its error, `<x, x> - <x, q>**2 / <q, q>`. The least error wins.

    Args:
        scale_dtype: Type that the scales are stored in.
        asymmetric: Whether blocks have zero points.
        importance: `(outer, block)` float32, the weight of each element's squared error (for a matmul the
            mean square of the input it meets); the outer axis repeats over the weight. None: all alike.
    """

    def choose(values: Float32, tile: Tile) -> tuple[Array, Bytes | None]:
        high = values.max(axis=1, keepdims=True)
        low = values.min(axis=1, keepdims=True)
        if not (np.isfinite(high).all() and np.isfinite(low).all()):
            raise ValueError("it holds NaN or infinity")
        weights: Float32 | None = None
        if importance is not None:
            index = np.arange(tile[0].start, tile[0].stop) % importance.shape[0]
            weights = importance[index][:, :, None]
        if asymmetric:
            start, zero_point = numerics.asymmetric_scale(low, high, numerics.UINT4)
        else:
            start, zero_point = numerics.symmetric_scale(np.maximum(high, -low), numerics.INT4), None
        best_gain = np.full(start.shape, -1, np.float32)
        best_scale, best_zero = start, zero_point
        scratch = np.empty_like(values)
        for ratio in CLIP_RATIOS:
            trial = start * np.float32(ratio)
            if asymmetric:
                trial, zero_point = numerics.asymmetric_scale(
                    low * np.float32(ratio), high * np.float32(ratio), numerics.UINT4
                )
            gain, fitted = _fit(values, trial, zero_point, weights, scratch)
            better = gain > best_gain
            best_gain = np.where(better, gain, best_gain)
            best_scale = np.where(better, fitted, best_scale)
            if zero_point is not None and best_zero is not None:
                best_zero = np.where(better, zero_point.astype(np.uint8), best_zero.astype(np.uint8))
        stored = numerics.store_scale(best_scale, scale_dtype)
        return stored, None if best_zero is None else best_zero.astype(np.uint8)

    return choose


def _fit(
    values: Float32, trial: Array, zero_point: Array | None, weights: Float32 | None, q: Float32
) -> tuple[Float32, Float32]:
    """`(gain, scale)` of one rounding: gain is `<x, q>**2 / <q, q>`, what it takes off the squared error."""
    np.divide(values, trial, out=q)
    np.rint(q, out=q)
    if zero_point is None:
        np.clip(q, -8, 7, out=q)
    else:
        zero = zero_point.astype(np.float32)
        np.clip(q, -zero, 15 - zero, out=q)
    if weights is None:
        # einsum multiplies and sums without writing the products out.
        across = np.einsum("obi,obi->oi", values, q)[:, None, :]
        power = np.einsum("obi,obi->oi", q, q)[:, None, :]
    else:
        across = np.einsum("obi,obi,ob->oi", values, q, weights[:, :, 0])[:, None, :]
        power = np.einsum("obi,obi,ob->oi", q, q, weights[:, :, 0])[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = np.where((power > 0) & (across > 0), across / power, trial).astype(np.float32)
        gain = np.where(power > 0, across * across / power, 0).astype(np.float32)
    return gain, fitted
