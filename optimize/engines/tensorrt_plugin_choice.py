"""Which kernel computes a product with 8-bit weights, and how it is cut: a short table from measured figures."""

from __future__ import annotations

import dataclasses

SOURCE = "docs/gpu/2026-11-25-int8-plugin.json"
"""NVIDIA H200, blocks of 128: 22 ways per shape, one and 16 rows, (N, K) = (14336, 4096) and (4096, 14336)."""

TILE_ROWS = 64
"""Rows of one tile at most; more rows read the weights once per tile."""

_SHARED_BYTES = 96 << 10
"""Shared memory of a program on the smallest GPU a portable plan runs on (compute capability 8.6: 99 KiB)."""

_NARROW = 512
"""Programs of 16 channels below which an H200's 132 multiprocessors idle: N 4096 gives 256, N 14336 gives 896."""


@dataclasses.dataclass(frozen=True)
class Rowwise:
    """One row of x: a program sums `channels` outputs, `blocks` blocks of weights a turn."""

    channels: int
    blocks: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tiled:
    """More rows, on the matrix units: a program makes `rows` × `channels` outputs of one of `split` parts of K."""

    rows: int
    channels: int
    split: int
    warps: int
    stages: int


def choose(rows: int, channels: int, blocks: int, block: int) -> Rowwise | Tiled:
    """The kernel for x `(rows, K)` times codes `(channels, blocks, block)`.

    Measured at one row: 4 channels × 1024 weights a turn, 3.1 to 3.4 TB/s. At 16 rows: 16 channels by one warp
    where that makes enough programs (2.9 TB/s), else 64 channels and K in four parts (2.2 TB/s). Other row counts
    and block sizes follow from these by what fits; they were not measured.
    """
    if rows == 1:
        return Rowwise(channels=4, blocks=max(1, 1024 // block), warps=4, stages=1)
    tile = 16 if rows <= 16 else 32 if rows <= 32 else TILE_ROWS
    if rows <= 16 and channels // 16 >= _NARROW:
        return Tiled(tile, 16, 1, warps=1, stages=_stages(4, tile, 16, block))
    split = 1 if rows > TILE_ROWS else next(parts for parts in (4, 2, 1) if blocks % parts == 0)
    return Tiled(tile, 64, split, warps=4, stages=_stages(5, tile, 64, block))


def _stages(wanted: int, rows: int, channels: int, block: int) -> int:
    """As many loads in flight as shared memory holds: codes of a byte, x of two."""
    return max(1, min(wanted, _SHARED_BYTES // (block * (channels + 2 * rows))))


def workspace_bytes(most_rows: int, channels: int, blocks: int, block: int) -> int:
    """Partial sums in float32 that any number of rows up to `most_rows` can need."""
    highest = min(most_rows, TILE_ROWS)
    cuts = {choose(rows, channels, blocks, block) for rows in range(1, highest + 1)}
    split = max(cut.split if isinstance(cut, Tiled) else 1 for cut in cuts)
    return 4 * split * highest * channels if split > 1 else 0
