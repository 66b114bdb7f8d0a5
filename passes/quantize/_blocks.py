"""A weight in 4-bit integer blocks: scales chosen tile by tile, codes rounded and packed as they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.quantize._tiles import Tile, layout, run_tiles, tiles, to_float32

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

Choose = Callable[[Float32, Tile], tuple[Array, Bytes | None]]
"""Picks `(scale, zero_point)` for the blocks of one tile.

Takes the tile's values, `(outer, block, inner)` float32, and its place; gives the scale in its stored type
and the zero point 0…15 (None: symmetric), each `(outer, 1, inner)`."""

# 1.5 * 2**23: a float32 of this size has no fraction bits, so adding it rounds half to even, and the low
# byte of the sum is the rounded number.
_ROUND = np.float32(12582912)

_WORD_OF_ROUND = np.uint32(sum(int(_ROUND.view(np.uint32)) << (4 * place) for place in range(8)) % 2**32)

SYMMETRIC_ZERO = 8
"""A symmetric code is this much larger in uint4 than in int4; MatMulNBits takes it as its zero point."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A weight in 4-bit blocks.

    Attributes:
        codes: Packed elements, two a byte, shape `(bytes,)`.
        scales: `(outer, inner)` in the stored type, in memory order of the blocks.
        zero_points: 0…15, unpacked, shaped like `scales`; None when symmetric.
    """

    codes: Bytes
    scales: Array
    zero_points: Bytes | None


def quantize_blocks(
    weight: Array,
    axis: int,
    block: int,
    choose: Choose,
    *,
    scale_dtype: npt.DTypeLike,
    asymmetric: bool = False,
    signed: bool = False,
    by_column: bool = False,
) -> Blocks:
    """Quantize `weight` to 4 bits with one scale per `block` elements along `axis`.

    The result is what `passes.numerics.quantize` gives with the same scales, bit for bit.

    Args:
        weight: float32, float16 or bfloat16; `weight.shape[axis]` is a multiple of `block`.
        axis: Axis that the blocks run along, counted from the front.
        block: Elements per block; a multiple of 8.
        choose: Picks the scales and zero points.
        scale_dtype: Type that the scales are stored in.
        asymmetric: Whether `choose` gives zero points.
        signed: Two's-complement elements (INT4) instead of unsigned ones (UINT4, zero at 8).
        by_column: Lay codes, scales and zero points out column by column, `(inner, outer, …)`, each column's
            elements packed along its blocks, as MatMulNBits reads them; otherwise in the weight's own order.

    Raises:
        ValueError: When the weight holds NaN or infinity.
    """
    outer, _, inner = layout(weight.shape, axis, block)
    source = np.ascontiguousarray(weight).reshape(outer, block, inner)
    by_column = by_column and inner > 1
    codes = np.empty(outer * block * inner // 2, np.uint8)
    shape = (inner, outer) if by_column else (outer, inner)
    scales = np.empty(shape, np.dtype(scale_dtype))
    zero_points = np.empty(shape, np.uint8) if asymmetric else None

    def work(tile: Tile) -> None:
        rows, columns = tile
        values = to_float32(source[rows, :, columns])
        scale, zero_point = choose(values, tile)
        place = (columns, rows) if by_column else tile
        scales[place] = scale[:, 0, :].T if by_column else scale[:, 0, :]
        if zero_points is not None and zero_point is not None:
            zero_points[place] = zero_point[:, 0, :].T if by_column else zero_point[:, 0, :]
        rounded = _round(values, scale, zero_point)
        if by_column:
            words = _eight_in_a_word(rounded)
            codes.view("<u4").reshape(inner, outer, block // 8)[columns, rows] = words.transpose(2, 0, 1)
            return
        nibbles = _low_bytes(rounded)
        pairs = nibbles.reshape(-1).view("<u2")
        np.bitwise_or(pairs, pairs >> 4, out=pairs)
        if signed:
            np.bitwise_xor(pairs, 0x88, out=pairs)
        if columns.stop - columns.start == inner:
            span = block * inner // 2
            part = codes[rows.start * span : rows.stop * span]
        else:
            half = slice(columns.start // 2, columns.stop // 2)
            part = codes.reshape(outer, block, inner // 2)[rows, :, half]
        np.copyto(part, pairs.reshape(part.shape), casting="unsafe")

    run_tiles(work, tiles(outer, block, inner))
    return Blocks(codes, scales, zero_points)


def encode(values: Float32, scale: Array, zero_point: Bytes | None) -> Bytes:
    """Round a tile of finite values to codes 0…15, one a byte; `values` is overwritten."""
    return _low_bytes(_round(values, scale, zero_point))


def _round(values: Float32, scale: Array, zero_point: Bytes | None) -> Float32:
    """`values`, finite, as `_ROUND` plus codes 0…15; overwritten."""
    np.divide(values, scale.astype(np.float32), out=values)
    # Far outside the grid _ROUND is not exact, but the clipping brings such a sum to the same end.
    if zero_point is None:  # an even number: it moves no half to another even one
        np.add(values, _ROUND + np.float32(SYMMETRIC_ZERO), out=values)
    else:
        np.add(values, _ROUND, out=values)
        np.add(values, zero_point.astype(np.float32), out=values)
    clipped: Float32 = np.clip(values, _ROUND, _ROUND + np.float32(15), out=values)
    return clipped


def _low_bytes(rounded: Float32) -> Bytes:
    codes = np.empty(rounded.shape, np.uint8)
    np.copyto(codes, rounded.view(np.uint32), casting="unsafe")
    return codes


def _eight_in_a_word(rounded: Float32) -> npt.NDArray[np.uint32]:
    """`(outer, block, inner)` codes on `_ROUND` as `(outer, block / 8, inner)` words, the first code lowest.

    The bits of `_ROUND` plus a code are its own bits plus the code, so they may be shifted and added as they are,
    and what `_ROUND` adds to a word is taken off at last, all modulo 2**32.
    """
    bits = rounded.view(np.uint32)
    words = bits[:, 0::8].copy()
    shifted = np.empty_like(words)
    for place in range(1, 8):
        np.left_shift(bits[:, place::8], np.uint32(4 * place), out=shifted)
        np.add(words, shifted, out=words)
    np.subtract(words, _WORD_OF_ROUND, out=words)
    return words


def restored(weight: Float32, block: int, choose: Choose) -> Float32:
    """What a `(K, N)` weight becomes by being quantized along K and read back; for trials."""
    summed, columns = weight.shape
    padded = np.pad(weight, ((0, -summed % block), (0, 0)))
    values = padded.reshape(-1, block, columns)
    scale, zero_point = choose(values, (slice(0, len(values)), slice(0, columns)))
    zero = np.float32(SYMMETRIC_ZERO) if zero_point is None else zero_point.astype(np.float32)
    steps = encode(values.copy(), scale, zero_point).astype(np.float32) - zero
    back: Float32 = (steps * scale.astype(np.float32)).reshape(padded.shape)[:summed]
    return back
