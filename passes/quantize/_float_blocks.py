"""Weights in narrow floating-point formats: FP8 per channel or block, FP4 in NVFP4 and MX blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from passes import block_formats, numerics
from passes.numerics import Format
from passes.quantize._nvfp4_search import least_squared_error
from passes.quantize._tiles import Tile, layout, run_tiles, tiles, to_float32

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

TILE_ELEMENTS = 1 << 18
"""Elements worked on at a time. Small tiles stay in a core's cache, but then the threads spend their time handing
Python's lock over between some sixty operations: NVFP4 on two cores takes 17 ns an element with 2**16, 7 with
2**18, and 6 with 2**19, which holds 28 MB more."""

ChooseStep = Callable[[Float32], tuple[Array, Float32]]
"""Takes a tile's values, `(1, block, blocks)`; gives the stored scales and the steps in real units, each
`(1, 1, blocks)`."""


@dataclasses.dataclass(frozen=True)
class FloatBlocks:
    """A weight in narrow floating-point blocks.

    Attributes:
        codes: For FP8 the elements, shaped like the weight; for FP4 packed bytes, shape `(bytes,)`.
        scales: `(outer, inner)` in their stored type.
    """

    codes: Array
    scales: Array


def amax_of(weight: Array) -> float:
    """The largest magnitude of a weight, read tile by tile.

    Raises:
        ValueError: When the weight holds NaN or infinity.
    """
    flat = np.ascontiguousarray(weight).reshape(1, 1, -1)
    found: list[float] = []
    run_tiles(lambda tile: found.append(_tile_amax(flat[:, :, tile[1]])), tiles(*flat.shape))
    amax = max(found, default=0.0)
    if not np.isfinite(amax) or np.isnan(found).any():
        raise ValueError("it holds NaN or infinity")
    return amax


def _tile_amax(values: Array) -> float:
    tile = to_float32(values)
    return max(float(tile.max()), -float(tile.min()))


def quantize_float_blocks(
    weight: Array, axis: int, block: int, grid: Format, choose: ChooseStep, scale_dtype: npt.DTypeLike
) -> FloatBlocks:
    """Quantize `weight` to `grid` with one scale per `block` elements along `axis`.

    Args:
        weight: float32, float16 or bfloat16; `weight.shape[axis]` is a multiple of `block`.
        axis: Axis that the blocks run along, counted from the front.
        block: Elements per block.
        grid: FP8 or FP4.
        choose: Picks the scales.
        scale_dtype: Type that the scales are stored in.

    Raises:
        ValueError: When the weight holds NaN or infinity.
    """
    outer, _, inner = layout(weight.shape, axis, block)
    source = np.ascontiguousarray(weight).reshape(outer, block, inner)
    scales = np.empty((outer, inner), np.dtype(scale_dtype))
    narrow = grid.bits == 4
    codes = np.empty((outer * block * inner // 2,), np.uint8) if narrow else np.empty(source.shape, grid.dtype)

    def work(tile: Tile) -> None:
        rows, columns = tile
        # A block's elements one below the other, so that every operation runs along many blocks.
        turned = source[rows, :, columns].transpose(1, 0, 2)
        values = to_float32(turned).reshape(1, block, -1)
        stored, step = choose(values)
        scales[rows, columns] = stored.reshape(turned.shape[1:])
        np.divide(values, step, out=values)
        if not np.isfinite(np.sum(values)):
            raise ValueError("it holds NaN or infinity")
        if not narrow:
            np.clip(values, grid.lowest, grid.highest, out=values)
            codes[rows, :, columns] = values.astype(grid.dtype).reshape(turned.shape).transpose(1, 0, 2)
            return
        nibbles = block_formats.e2m1_codes(values).reshape(turned.shape)
        if inner == 1:
            pairs = nibbles[0::2, :, 0] | (nibbles[1::2, :, 0] << np.uint8(4))
            codes.reshape(outer, block // 2)[rows] = pairs.T
            return
        packed = numerics.pack_4bit(nibbles.transpose(1, 0, 2))
        if columns.stop - columns.start == inner:
            span = block * inner // 2
            codes[rows.start * span : rows.stop * span] = packed
        else:
            half = slice(columns.start // 2, columns.stop // 2)
            part = codes.reshape(outer, block, inner // 2)[rows, :, half]
            part[...] = packed.reshape(part.shape)

    run_tiles(work, tiles(outer, block, inner, TILE_ELEMENTS))
    return FloatBlocks(codes if narrow else codes.reshape(weight.shape), scales)


def quantize_fp8_channels(
    weight: Array, channel_axis: int, scale_dtype: npt.DTypeLike, *, one_scale: bool = False
) -> FloatBlocks:
    """Quantize `weight` to E4M3 with one scale per output channel.

    Args:
        weight: float32, float16 or bfloat16.
        channel_axis: Axis of the output channels, counted from the front.
        scale_dtype: Type that the scales are stored in.
        one_scale: Give all channels the scale of the largest.

    Returns:
        Elements shaped like `weight`; scales `(channels,)`.

    Raises:
        ValueError: When the weight holds NaN or infinity.
    """
    before, channels, after = layout(weight.shape, channel_axis, weight.shape[channel_axis])
    source = np.ascontiguousarray(weight).reshape(before, channels, after)
    parts = [slice(start, start + 1) for start in range(before)]
    if before > 1:
        height = max(1, (1 << 17) // (channels * after))
        parts = [slice(start, min(start + height, before)) for start in range(0, before, height)]
        todo: list[Tile] = [(part, slice(0, channels)) for part in parts]
    else:
        width = max(1, (1 << 17) // after)
        todo = [(slice(0, 1), slice(start, min(start + width, channels))) for start in range(0, channels, width)]
    found = np.zeros((len(todo), channels), np.float32)
    places = {(tile[0].start, tile[1].start): index for index, tile in enumerate(todo)}

    def measure(tile: Tile) -> None:
        values = to_float32(source[tile[0], tile[1]])
        index = places[tile[0].start, tile[1].start]
        found[index, tile[1]] = np.maximum(values.max(axis=(0, 2)), -values.min(axis=(0, 2)))

    run_tiles(measure, todo)
    amax = found.max(axis=0)
    if not np.isfinite(amax).all():
        raise ValueError("it holds NaN or infinity")
    if one_scale:
        amax[:] = amax.max(initial=0)
    scales = numerics.symmetric_scale(amax, numerics.FP8_E4M3, scale_dtype)
    step = scales.astype(np.float32)[None, :, None]
    codes = np.empty(source.shape, numerics.FP8_E4M3.dtype)

    def encode(tile: Tile) -> None:
        values = to_float32(source[tile[0], tile[1]])
        codes[tile[0], tile[1]] = numerics.quantize(values, step[:, tile[1]], numerics.FP8_E4M3)

    run_tiles(encode, todo)
    return FloatBlocks(codes.reshape(weight.shape), scales)


def block_range(grid: Format, scale_dtype: npt.DTypeLike) -> ChooseStep:
    """Block scales from the largest magnitude, in an ordinary floating type."""

    def choose(values: Float32) -> tuple[Array, Float32]:
        stored = numerics.symmetric_scale(_block_amax(values), grid, scale_dtype)
        return stored, stored.astype(np.float32)

    return choose


def block_power_of_two(grid: Format, scale_dtype: npt.DTypeLike) -> ChooseStep:
    """The MX formats' scales; a type too narrow for a power gets the nearest one that it holds."""

    def choose(values: Float32) -> tuple[Array, Float32]:
        exact = numerics.power_of_two_scale(_block_amax(values), grid)
        if np.dtype(scale_dtype) == numerics.E8M0:
            return exact, exact.astype(np.float32)
        stored = numerics.store_scale(exact.astype(np.float32), scale_dtype)
        return stored, stored.astype(np.float32)

    return choose


def nvfp4(global_scale: np.float32, *, search: bool) -> ChooseStep:
    """NVFP4's E4M3 block scales: from the block's range, or with `search` those with the least squared error."""

    def choose(values: Float32) -> tuple[Array, Float32]:
        amax = _block_amax(values)
        if search:
            best = least_squared_error(values, amax, global_scale)
        else:
            best = block_formats.nvfp4_block_step(amax, global_scale)
        return best.astype(numerics.FP8_E4M3.dtype), best * global_scale

    return choose


def _block_amax(values: Float32) -> Float32:
    amax: Float32 = np.maximum(values.max(axis=1, keepdims=True), -values.min(axis=1, keepdims=True))
    if not np.isfinite(amax).all():
        raise ValueError("it holds NaN or infinity")
    return amax
