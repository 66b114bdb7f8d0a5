"""Number formats of quantization: scale, zero point, rounding, packing. Arrays in, arrays out; no graph.

Every format follows the ONNX operators: `quantize` is QuantizeLinear (round half to even, then saturate) and
`dequantize` is DequantizeLinear, both in float32, so that what is computed here is what an engine computes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Format:
    """A grid of numbers that a stored element can take.

    Attributes:
        name: As recipes and reports spell it: "int8", "fp8_e4m3".
        dtype: The NumPy (or ml_dtypes) type of one unpacked element.
        bits: Width of one stored element.
        lowest: Smallest value a symmetric quantizer uses.
        highest: Largest value; a symmetric scale maps a block's largest magnitude onto it.
        floating: Whether the steps grow with the magnitude (fp8, fp4) or are all one (int).
        exponent: For floating formats, the binary exponent of `highest`.
    """

    name: str
    dtype: np.dtype[Any]
    bits: int
    lowest: float
    highest: float
    floating: bool = False
    exponent: int = 0


# int8 and int4 keep -128 and -8 for asymmetric use alone: symmetric grids are mirror images, so that x and -x
# are stored as q and -q (TensorRT developer guide, "Quantization types": symmetric, zero point 0).
INT8 = Format("int8", np.dtype(np.int8), 8, -127, 127)
UINT8 = Format("uint8", np.dtype(np.uint8), 8, 0, 255)
INT4 = Format("int4", np.dtype(ml_dtypes.int4), 4, -7, 7)
UINT4 = Format("uint4", np.dtype(ml_dtypes.uint4), 4, 0, 15)
FP8_E4M3 = Format("fp8_e4m3", np.dtype(ml_dtypes.float8_e4m3fn), 8, -448, 448, floating=True, exponent=8)
FP8_E5M2 = Format("fp8_e5m2", np.dtype(ml_dtypes.float8_e5m2), 8, -57344, 57344, floating=True, exponent=15)
FP4_E2M1 = Format("fp4_e2m1", np.dtype(ml_dtypes.float4_e2m1fn), 4, -6, 6, floating=True, exponent=2)
FORMATS = {item.name: item for item in (INT8, UINT8, INT4, UINT4, FP8_E4M3, FP8_E5M2, FP4_E2M1)}

E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
"""The scale type of the MX formats: a power of two, 2**-127 to 2**127 (OCP Microscaling v1.0)."""

_STORED_RANGE: dict[str, tuple[float, float]] = {
    "int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15),
}  # fmt: skip


def stored_range(grid: Format) -> tuple[float, float]:
    """What the stored element can hold at most, which is where QuantizeLinear saturates."""
    return _STORED_RANGE.get(grid.name, (grid.lowest, grid.highest))


def symmetric_scale(amax: Array, grid: Format, dtype: npt.DTypeLike = np.float32) -> Array:
    """One step in real units, so that `amax` lands on the grid's highest value.

    Args:
        amax: Largest magnitude per tensor, channel or block; any shape.
        grid: Format of the stored elements.
        dtype: Type that the scale is stored in; rounding to it happens here, so that quantizing with the
            result uses exactly what the engine will read.

    Returns:
        Scales shaped like `amax`, strictly positive; 1 where `amax` is 0 (zeros stay zero under any scale).
    """
    scale = np.asarray(amax, np.float32) / np.float32(grid.highest)
    return store_scale(np.where(scale > 0, scale, np.float32(1)), dtype)


def asymmetric_scale(
    low: Array, high: Array, grid: Format, dtype: npt.DTypeLike = np.float32
) -> tuple[Array, Array]:
    """Scale and zero point that cover `[low, high]`, widened to hold 0 so that zero is exact.

    Returns:
        `(scale, zero_point)`, shaped like `low`; the zero point has the grid's own type.
    """
    lowest, highest = stored_range(grid)
    low = np.minimum(np.asarray(low, np.float32), 0)
    high = np.maximum(np.asarray(high, np.float32), 0)
    # Halves first: high - low overflows float32 for a range of its full width.
    span = (high / 2 - low / 2) / np.float32((highest - lowest) / 2)
    scale = store_scale(np.where(span > 0, span, np.float32(1)), dtype)
    zero_point = np.clip(np.rint(lowest - low / scale.astype(np.float32)), lowest, highest)
    return scale, zero_point.astype(np.int32).astype(grid.dtype)


def store_scale(scale: Array, dtype: npt.DTypeLike) -> Array:
    """Round scales to the type they are stored in, never to zero or beyond the type's range."""
    kind = np.dtype(dtype)
    limits = ml_dtypes.finfo(kind)
    # The smallest normal number in float32 (its subnormals are slow and flushed by some engines); in the
    # narrow types the smallest subnormal, because their normal range ends where real scales still lie.
    least = float(limits.tiny if kind == np.float32 else limits.smallest_subnormal)
    return np.clip(np.asarray(scale, np.float32), least, float(limits.max)).astype(kind)


def power_of_two_scale(amax: Array, grid: Format, *, saturate: bool = False) -> Array:
    """The MX formats' shared scale: a power of two per block, stored as E8M0.

    Args:
        amax: Largest magnitude per block.
        grid: Format of the elements.
        saturate: True takes the exponent that OCP Microscaling v1.0 (section 6.3) gives, `floor(log2(amax)) -
            exponent`, under which the largest elements may saturate; False takes the next power of two
            where they would, which is what NVIDIA's kernels do and more accurate for fp8.

    Returns:
        Scales shaped like `amax`, dtype E8M0; 1 where `amax` is 0.
    """
    amax = np.asarray(amax, np.float32)
    safe = np.where(amax > 0, amax, np.float32(1))
    if saturate:
        exponent = np.frexp(safe)[1] - 1 - grid.exponent
    else:
        mantissa, exponent = np.frexp(safe / np.float32(grid.highest))
        exponent = exponent - (mantissa == 0.5)
    exponent = np.clip(np.where(amax > 0, exponent, 0), -127, 127)
    return (exponent + 127).astype(np.uint8).view(E8M0)


def quantize(x: Array, scale: Array, grid: Format, zero_point: Array | None = None) -> Array:
    """`saturate(round_half_even(x / scale) + zero_point)`, ONNX QuantizeLinear in float32.

    Args:
        x: Real values.
        scale: Broadcasts against `x`.
        grid: Format of the result.
        zero_point: Broadcasts against `x`; integer formats only.

    Returns:
        Elements of `grid.dtype`, unpacked, shaped like `x`. NaN becomes NaN where the format has one, else 0.
    """
    lowest, highest = stored_range(grid)
    with np.errstate(over="ignore"):
        steps = np.asarray(np.asarray(x, np.float32) / np.asarray(scale, np.float32))
    if grid.floating:
        # Clipped first: a cast to float8_e4m3fn turns what is too large into NaN.
        clipped: Array = np.clip(steps, np.float32(lowest), np.float32(highest)).astype(grid.dtype)
        return clipped
    np.rint(steps, out=steps)
    if zero_point is not None:
        steps = steps + np.asarray(zero_point).astype(np.float32)
    np.clip(steps, lowest, highest, out=steps)
    if np.isnan(steps).any():
        steps = np.nan_to_num(steps, copy=False, nan=0.0)
    whole: Array = steps.astype(np.int16).astype(grid.dtype)
    return whole


def dequantize(q: Array, scale: Array, zero_point: Array | None = None) -> Float32:
    """`(q - zero_point) * scale`, ONNX DequantizeLinear in float32."""
    steps: Float32 = np.asarray(q).astype(np.float32)
    if zero_point is not None:
        steps = steps - np.asarray(zero_point).astype(np.float32)
    return steps * np.asarray(scale).astype(np.float32)


def pack_4bit(values: Array) -> npt.NDArray[np.uint8]:
    """Two 4-bit elements a byte in row-major order, the first one in the low half (ONNX `TensorProto`).

    Args:
        values: int4, uint4 or float4_e2m1fn elements, one a byte; any shape. An odd count is padded with 0.

    Returns:
        Bytes, shape `(ceil(count / 2),)`.
    """
    nibbles = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    # One 16-bit load per pair, low byte first on every machine numpy calls little-endian.
    pairs = nibbles.view(np.dtype("<u2"))
    packed: npt.NDArray[np.uint8] = ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)
    return packed


def unpack_4bit(packed: Array, shape: tuple[int, ...], grid: Format) -> Array:
    """The inverse of `pack_4bit`: elements of `grid.dtype`, shaped `shape`."""
    flat = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
    nibbles = np.empty(flat.size * 2, np.uint8)
    nibbles[0::2] = flat & 0x0F
    nibbles[1::2] = flat >> 4
    if grid.name == "int4":
        # Sign-extend: ml_dtypes.int4 keeps a whole byte and expects the sign in all of it.
        nibbles = ((nibbles ^ 8) - np.uint8(8)).astype(np.uint8)
    count = int(np.prod(shape, dtype=np.int64))
    elements: Array = nibbles[:count].view(grid.dtype).reshape(shape)
    return elements
