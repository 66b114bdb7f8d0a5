"""HQQ: 4-bit scales or zero points that leave few large errors, from the weight alone.

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). It minimizes the sum
of |error|**0.7, which forgives outliers, by turns: a shrinkage step says which part of each error is an outlier's,
then the zero point (or, without one, the scale) has a closed form for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from passes import numerics
from passes.quantize._blocks import SYMMETRIC_ZERO, Choose
from passes.quantize._tiles import Tile

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

NORM = 0.7
"""The exponent p of |error|**p."""

START, GROWTH, TURNS = 1.0, 1.5, 4
"""Weight of the half-quadratic term, for errors in steps (the paper's are in real units), its growth, the turns."""


CLIP_RATIOS = (1.0, 0.92, 0.84, 0.76)
"""Parts of the range that are started from. Zero points are whole here, where the paper's are not, and one step's
shift of them seldom gains unless the range is cut."""


def half_quadratic(scale_dtype: npt.DTypeLike, *, asymmetric: bool) -> Choose:
    """The block's zero point, moved by turns from its range's; without one, the scale.

    The best of all turns from all starts is kept, judged with what is stored, so it never loses to the range.
    """

    def choose(values: Float32, tile: Tile) -> tuple[Array, Bytes | None]:
        high = values.max(axis=1, keepdims=True)
        low = values.min(axis=1, keepdims=True)
        if not (np.isfinite(high).all() and np.isfinite(low).all()):
            raise ValueError("it holds NaN or infinity")
        best: tuple[Float32, Float32] | None = None
        least = np.full(high.shape, np.inf, np.float32)
        for ratio in np.array(CLIP_RATIOS, np.float32):
            for scale, zero in _turns(values, low * ratio, high * ratio, scale_dtype, asymmetric=asymmetric):
                error = values - (_codes(values, scale, zero) - zero) * scale
                cost = (np.abs(error) ** np.float32(NORM)).sum(axis=1, keepdims=True)
                better = cost < least
                least = np.where(better, cost, least)
                best = (scale, zero) if best is None else _where(better, (scale, zero), best)
        assert best is not None  # there are ratios and turns
        return numerics.store_scale(best[0], scale_dtype), best[1].astype(np.uint8) if asymmetric else None

    return choose


def _where(chosen: Array, new: tuple[Float32, Float32], old: tuple[Float32, Float32]) -> tuple[Float32, Float32]:
    return np.where(chosen, new[0], old[0]), np.where(chosen, new[1], old[1])


def _turns(
    values: Float32, low: Float32, high: Float32, scale_dtype: npt.DTypeLike, *, asymmetric: bool
) -> Iterator[tuple[Float32, Float32]]:
    """`(scale, zero point)` as they would be stored, float32 both, after each turn."""
    if asymmetric:
        stored, whole = numerics.asymmetric_scale(low, high, numerics.UINT4, scale_dtype)
        zero = whole.astype(np.float32)
    else:
        stored = numerics.symmetric_scale(np.maximum(high, -low), numerics.INT4, scale_dtype)
        zero = np.full(stored.shape, SYMMETRIC_ZERO, np.float32)
    scale = stored.astype(np.float32)
    weight = np.float32(START)
    for _ in range(TURNS):
        yield numerics.store_scale(scale, scale_dtype).astype(np.float32), np.rint(zero)
        steps = values / scale
        codes = _codes(values, scale, zero)
        target = steps - _shrunk(steps - (codes - zero), weight)
        if asymmetric:
            zero = np.clip((codes - target).mean(axis=1, keepdims=True), 0, 15)
        else:
            power = np.square(codes - zero).sum(axis=1, keepdims=True)
            across = ((codes - zero) * target).sum(axis=1, keepdims=True)
            usable = (power > 0) & (across > 0)
            scale = np.where(usable, scale * across / np.where(usable, power, 1), scale).astype(np.float32)
        weight *= np.float32(GROWTH)


def _codes(values: Float32, scale: Float32, zero: Float32) -> Float32:
    codes: Float32 = np.clip(np.rint(values / scale) + np.rint(zero), 0, 15).astype(np.float32)
    return codes


def _shrunk(error: Float32, weight: np.float32) -> Float32:
    """The outliers' part of each error: `sign(e) * max(|e| - |e|**(p - 1) / weight, 0)`."""
    size = np.maximum(np.abs(error), np.float32(1e-6))
    shrunk: Float32 = np.sign(error) * np.maximum(size - size ** np.float32(NORM - 1) / weight, 0)
    return shrunk
