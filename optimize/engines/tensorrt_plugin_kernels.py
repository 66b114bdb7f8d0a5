"""Products with 8-bit weights in Triton: y = x · (scales · (codes − 128))ᵀ, float16 in and out, float32 sums.

x `(M, K)`, codes `(N, BLOCKS, BLOCK)` uint8, scales `(N, BLOCKS)` float16, y `(M, N)`; the last block may be part
empty. What does not divide evenly is masked, and costs nothing where everything does.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from optimize.engines.tensorrt_plugin_choice import Rowwise, Tiled, choose

_GATHERED = 1024
"""Sums that one program of `gather` adds up."""


@triton.jit
def centred(codes, ASSEMBLY: tl.constexpr):
    """uint8 to float16 minus 128: four at a time by byte permutation (0x6400 | code is 1024 + code), or plainly."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 c, m, lo, hi;
            mov.b32 c, 0x64646464;
            mov.b32 m, 0x64806480;
            prmt.b32 lo, $2, c, 0x4140;
            prmt.b32 hi, $2, c, 0x4342;
            sub.f16x2 $0, lo, m;
            sub.f16x2 $1, hi, m;
            }
            """,
            "=r,=r,r",
            [codes],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    return codes.to(tl.float16) - 128.0


@triton.jit
def one_row(
    x,
    codes,
    scales,
    y,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    TURN: tl.constexpr,
    STAGES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """x `(K,)`: each program makes CHANNELS of y, TURN blocks a turn: products summed by block, then scaled."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.minimum(channel, N - 1) if N % CHANNELS else channel
    group = tl.arange(0, TURN)
    within = tl.arange(0, BLOCK)
    total = tl.zeros([CHANNELS, TURN], tl.float32)
    for first in tl.range(0, BLOCKS, TURN, num_stages=STAGES):
        block = first + group
        at = block[:, None] * BLOCK + within[None, :]
        stored = tl.minimum(block, BLOCKS - 1) if BLOCKS % TURN else block
        place = row[:, None, None] * (BLOCKS * BLOCK) + (stored[:, None] * BLOCK + within[None, :])[None, :, :]
        weights = tl.load(codes + place, eviction_policy="evict_first")
        if BLOCKS % TURN or BLOCKS * BLOCK != K:
            values = tl.load(x + at, mask=at < K, other=0.0, eviction_policy="evict_last").to(tl.float32)
        else:
            values = tl.load(x + at, eviction_policy="evict_last").to(tl.float32)
        scale = tl.load(scales + row[:, None] * BLOCKS + stored[None, :]).to(tl.float32)
        total += tl.sum(centred(weights, ASSEMBLY).to(tl.float32) * values[None, :, :], 2) * scale
    result = tl.sum(total, 1).to(tl.float16)
    if N % CHANNELS:
        tl.store(y + channel, result, mask=channel < N)
    else:
        tl.store(y + channel, result)


@triton.jit
def tiles(
    x,
    codes,
    scales,
    y,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Matrix units. y `(M, N)` float16, or `(SPLIT, M, N)` float32 partial sums where SPLIT > 1."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.minimum(channel, N - 1) if N % CHANNELS else channel
    part = tl.program_id(1)
    m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    within = tl.arange(0, BLOCK)
    total = tl.zeros([CHANNELS, ROWS], tl.float32)
    each: tl.constexpr = BLOCKS // SPLIT
    for turn in tl.range(0, each, num_stages=STAGES):
        block = part * each + turn
        at = block * BLOCK + within
        weights = tl.load(codes + row[:, None] * (BLOCKS * BLOCK) + at[None, :], eviction_policy="evict_first")
        if BLOCKS * BLOCK != K:
            values = tl.load(x + m[None, :] * K + at[:, None], mask=(m[None, :] < M) & (at[:, None] < K), other=0.0)
        else:
            values = tl.load(x + m[None, :] * K + at[:, None], mask=m[None, :] < M, other=0.0)
        scale = tl.load(scales + row * BLOCKS + block).to(tl.float32)
        total += tl.dot(centred(weights, ASSEMBLY), values) * scale[:, None]
    place = (part * M + m[None, :]) * N + channel[:, None]
    inside = (m[None, :] < M) & (channel[:, None] < N) if N % CHANNELS else m[None, :] < M
    if SPLIT == 1:
        tl.store(y + place, total.to(tl.float16), mask=inside)
    else:
        tl.store(y + place, total, mask=inside)


@triton.jit
def gather(parts, y, size, SPLIT: tl.constexpr, EACH: tl.constexpr):
    """Sum parts `(SPLIT, size)` float32 into y `(size,)` float16."""
    at = tl.program_id(0) * EACH + tl.arange(0, EACH)
    total = tl.zeros([EACH], tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * size + at, mask=at < size, other=0.0)
    tl.store(y + at, total.to(tl.float16), mask=at < size)


def launch(
    x: Any,
    codes: Any,
    scales: Any,
    y: Any,
    workspace: Any,
    rows: int,
    n: int,
    k: int,
    block: int,
    assembly: bool = True,
) -> None:
    """Put one product on torch's current stream; compiles what these shapes need at their first call.

    Args:
        x, codes, scales, y, workspace: Tensors, or anything with Triton's `data_ptr()` and `dtype`; workspace is
            float32, of `workspace_bytes`.
        rows, n, k: x is `(rows, k)`, y `(rows, n)`.
        block: Weights along K that share a scale.
        assembly: Whether codes are converted by NVIDIA's byte permutation.
    """
    blocks = -(-k // block)
    sizes = {"N": n, "K": k, "BLOCKS": blocks, "BLOCK": block, "ASSEMBLY": assembly}
    match choose(rows, n, blocks, block):
        case Rowwise() as cut:
            one_row[(-(-n // cut.channels),)](
                x, codes, scales, y, **sizes,
                CHANNELS=cut.channels, TURN=cut.blocks, STAGES=cut.stages, num_warps=cut.warps,
            )  # fmt: skip
        case Tiled() as cut:
            into = y if cut.split == 1 else workspace
            tiles[(-(-n // cut.channels), cut.split, -(-rows // cut.rows))](
                x, codes, scales, into, rows, **sizes,
                ROWS=cut.rows, CHANNELS=cut.channels, SPLIT=cut.split, STAGES=cut.stages, num_warps=cut.warps,
            )  # fmt: skip
            if cut.split > 1:
                gather[(-(-rows * n // _GATHERED),)](workspace, y, rows * n, SPLIT=cut.split, EACH=_GATHERED)
