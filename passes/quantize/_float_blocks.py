"""Weights in narrow floating-point formats: FP8 per channel or block, FP4 in NVFP4 and MX blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from passes import block_formats, numerics
from passes.numerics import Format
from passes.quantize._tiles import Tile, layout, run_tiles, tiles, to_float32

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

ChooseStep = Callable[[Float32], tuple[Array, Float32]]
"""Takes a tile's values, `(outer, block, inner)`; gives the stored scales and the steps in real units, each
`(outer, 1, inner)`."""


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
        values = to_float32(source[rows, :, columns])
        stored, step = choose(values)
        scales[rows, columns] = stored[:, 0, :]
        np.divide(values, step, out=values)
        if not np.isfinite(np.sum(values)):
            raise ValueError("it holds NaN or infinity")
        np.clip(values, grid.lowest, grid.highest, out=values)
        elements = values.astype(grid.dtype)
        if not narrow:
            codes[rows, :, columns] = elements
            return
        packed = numerics.pack_4bit(elements)
        if columns.stop - columns.start == inner:
            span = block * inner // 2
            codes[rows.start * span : rows.stop * span] = packed
        else:
            half = slice(columns.start // 2, columns.stop // 2)
            part = codes.reshape(outer, block, inner // 2)[rows, :, half]
            part[...] = packed.reshape(part.shape)

    run_tiles(work, tiles(outer, block, inner))
    return FloatBlocks(codes if narrow else codes.reshape(weight.shape), scales)


def quantize_fp8_channels(weight: Array, channel_axis: int, scale_dtype: npt.DTypeLike) -> FloatBlocks:
    """Quantize `weight` to E4M3 with one scale per output channel.

    Args:
        weight: float32, float16 or bfloat16.
        channel_axis: Axis of the output channels, counted from the front.
        scale_dtype: Type that the scales are stored in.

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
    """NVFP4's E4M3 block scales.

    With `search`, each block tries several elements for its largest magnitude to become (6 uses the whole grid,
    4 avoids its widest gap; Cook et al., "Four Over Six", 2025, tries these two) and keeps the one with the
    least squared error.
    """
    trials = (6.0, 5.5, 5.0, 4.5, 4.0, 3.5) if search else (6.0,)

    def choose(values: Float32) -> tuple[Array, Float32]:
        amax = _block_amax(values)
        best = block_formats.nvfp4_block_scale(amax, global_scale)
        if not search:
            return best, best.astype(np.float32) * global_scale
        least = np.full(amax.shape, np.inf, np.float32)
        for highest in trials:
            trial = block_formats.nvfp4_block_scale(amax, global_scale, highest)
            step = trial.astype(np.float32) * global_scale
            error = block_formats.round_e2m1(values / step) * step - values
            squared = np.einsum("obi,obi->oi", error, error)[:, None, :]
            better = squared < least
            least = np.where(better, squared, least)
            best = np.where(better, trial, best)
        return best, best.astype(np.float32) * global_scale

    return choose


def _block_amax(values: Float32) -> Float32:
    amax: Float32 = np.maximum(values.max(axis=1, keepdims=True), -values.min(axis=1, keepdims=True))
    if not np.isfinite(amax).all():
        raise ValueError("it holds NaN or infinity")
    return amax
