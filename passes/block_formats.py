"""The two-level and power-of-two block formats, NVFP4, MXFP4 and MXFP8, in plain NumPy.

NVFP4: E2M1 elements, 16 to a block; a block's scale is E4M3 and is itself scaled by one float32 per tensor, so
`value = element * block scale * global scale` (NVIDIA TensorRT developer guide, "Quantized types").
MXFP4, MXFP8: E2M1 or E4M3 elements, 32 to a block, a power of two per block (OCP Microscaling v1.0).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from passes.numerics import FP4_E2M1, FP8_E4M3

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

NVFP4_BLOCK = 16
MX_BLOCK = 32

_LEAST_EXPONENT = ((127 + 22) * 2 + 1) & 0xFF
"""The low byte of a sum's exponent and first digit in `e2m1_codes` where P is 1."""

LEAST_SCALE = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).smallest_subnormal)


def nvfp4_global_scale(amax: float) -> np.float32:
    """The tensor's scale: the block scale of the block that holds `amax` then uses E4M3's full range.

    Args:
        amax: Largest magnitude in the tensor (for an activation: on the calibration data).

    Returns:
        `amax / (6 * 448)`, or 1 for a tensor of zeros.
    """
    scale = np.float32(amax) / np.float32(FP4_E2M1.highest * FP8_E4M3.highest)
    return (
        scale if scale >= np.finfo(np.float32).tiny else np.float32(1 if amax == 0 else np.finfo(np.float32).tiny)
    )


def nvfp4_block_scale(amax: Array, global_scale: np.float32, highest: float = FP4_E2M1.highest) -> Array:
    """Block scales in E4M3, positive, so that a block's `amax` lands on `highest`.

    Args:
        amax: Largest magnitude per block.
        global_scale: The tensor's scale.
        highest: The element that `amax` becomes; 6 uses the whole grid, 4 the finer part of it.
    """
    stored: Array = nvfp4_block_step(amax, global_scale, highest).astype(FP8_E4M3.dtype)
    return stored


def nvfp4_block_step(amax: Array, global_scale: np.float32, highest: float | Float32 = FP4_E2M1.highest) -> Float32:
    """The same numbers in float32, which a cast to E4M3 leaves as they are; `highest` broadcasts."""
    scale = np.asarray(amax, np.float32) / np.asarray(highest, np.float32) / global_scale
    return round_e4m3(np.clip(scale, np.float32(LEAST_SCALE), np.float32(FP8_E4M3.highest)))


def round_e2m1(steps: Float32) -> Float32:
    """The nearest E2M1 values (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), ties to even, saturating.

    What a cast to `float4_e2m1fn` gives after clipping, kept in float32. The spacing below 2 is 0.5 and doubles
    with every power of two, so it is half the number's own power of two, at least 0.5; adding and taking away
    1.5 * 2**23 spacings leaves a float32 no digits below one spacing, and rounds half to even on the way.
    """
    steps = np.clip(steps, np.float32(-8), np.float32(8))
    power = (steps.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    np.maximum(power, np.float32(1), out=power)
    np.multiply(power, np.float32(1.5 * 2**22), out=power)
    np.add(steps, power, out=steps)
    np.subtract(steps, power, out=steps)
    rounded: Float32 = np.clip(steps, np.float32(-6), np.float32(6), out=steps)
    return rounded


def e2m1_codes(steps: Float32) -> npt.NDArray[np.uint8]:
    """The 4-bit codes of `round_e2m1(steps)`, one a byte, as a cast to `float4_e2m1fn` stores them.

    Where a magnitude's spacing is half its own power of two P (1, 2 or 4), adding 1.5 * 2**22 * P leaves the
    number of spacings in the sum's low bits and log2(P) in its exponent, and the code is that number + 2 * log2(P).

    Args:
        steps: Any shape; contiguous, without NaN; overwritten.
    """
    negative = np.signbit(steps).view(np.uint8)
    np.abs(steps, out=steps)
    np.clip(steps, np.float32(0), np.float32(6), out=steps)  # with scalars clip beats minimum and maximum
    power = (steps.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    np.clip(power, np.float32(1), np.float32(4), out=power)
    np.multiply(power, np.float32(1.5 * 2**22), out=power)
    np.add(steps, power, out=steps)
    bits, exponent = steps.view(np.uint32), power.view(np.uint32)
    np.right_shift(bits, np.uint32(22), out=exponent)
    np.add(bits, exponent, out=bits)
    codes = np.empty(steps.shape, np.uint8)
    np.copyto(codes, bits, casting="unsafe")
    np.subtract(codes, np.uint8(_LEAST_EXPONENT), out=codes)
    np.multiply(negative, np.uint8(8), out=negative)
    np.bitwise_or(codes, negative, out=codes)
    return codes


def round_e4m3(scale: Float32) -> Float32:
    """The nearest E4M3 values, ties to even, of positive numbers up to 448, kept in float32.

    What a cast to `float8_e4m3fn` gives, by the way of `round_e2m1`: the spacing is an eighth of the number's own
    power of two, at least 2**-9.
    """
    power = (scale.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    np.maximum(power, np.float32(2.0**-6), out=power)
    np.multiply(power, np.float32(1.5 * 2**20), out=power)
    rounded: Float32 = scale + power
    np.subtract(rounded, power, out=rounded)
    return rounded


def nvfp4_dynamic(x: Float32, global_scale: np.float32) -> Float32:
    """Quantize and dequantize `x` along its last axis as TensorRT's `TRT_FP4DynamicQuantize` announces it.

    Args:
        x: Last axis a multiple of 16.
        global_scale: The activation's tensor scale, fixed by calibration.

    Returns:
        What the two DequantizeLinear after the operator give, shaped like `x`.
    """
    blocks = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, NVFP4_BLOCK)
    amax = np.abs(blocks).max(axis=-1, keepdims=True)
    step = nvfp4_block_scale(amax, global_scale).astype(np.float32) * global_scale
    return (round_e2m1(blocks / step) * step).reshape(x.shape)
