"""Attention and layer normalisation in Triton, on what dense products read and write: float16 in and out.

Attention reads query, key and value from one `(batch, tokens, 3 · heads · size)` and writes
`(batch, tokens, heads · size)`, so that no head is laid out in between. Each has fewer than 2³¹ elements.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from optimize.engines.tensorrt_dense_choice import AttentionCut, NormCut, choose_attention, choose_norm

_LOG2_E = 1.4426950408889634


@triton.jit
def attention(
    qkv, y, TOKENS, scale, HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One head's ROWS queries of one sample a program; `scale` has log₂ e in it."""
    width: tl.constexpr = HEADS * SIZE
    tiles = tl.cdiv(TOKENS, ROWS)  # In one dimension of programs: the others end at 65,535.
    which = tl.program_id(0) // tiles
    sample = which // HEADS
    head = which % HEADS
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    within = tl.arange(0, SIZE)
    base = qkv + sample * TOKENS * (3 * width) + head * SIZE
    query = tl.load(base + row[:, None] * (3 * width) + within[None, :], mask=(row < TOKENS)[:, None], other=0.0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, SIZE], tl.float32)
    for first in tl.range(0, TOKENS, KEYS, num_stages=STAGES):
        key = first + tl.arange(0, KEYS)
        inside = key < TOKENS
        place = base + width + key[:, None] * (3 * width) + within[None, :]
        keys = tl.load(place, mask=inside[:, None], other=0.0)
        values = tl.load(place + width, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, keys.T) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        risen = tl.maximum(highest, tl.max(scores, 1))
        shrunk = tl.exp2(highest - risen)
        part = tl.exp2(scores - risen[:, None])
        weight = weight * shrunk + tl.sum(part, 1)
        total = tl.dot(part.to(tl.float16), values, total * shrunk[:, None])
        highest = risen
    found = (total / weight[:, None]).to(tl.float16)
    to = y + sample * TOKENS * width + head * SIZE + row[:, None] * width + within[None, :]
    tl.store(to, found, mask=(row < TOKENS)[:, None])


@triton.jit
def layer_norm(x, weights, y, M, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """ROWS rows a program; weights `(2, WIDTH)`: scale and bias. Mean and variance in float32, in two passes."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    within = (column < WIDTH)[None, :] & (row < M)[:, None]
    place = row[:, None] * WIDTH + column[None, :]
    values = tl.load(x + place, mask=within, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / WIDTH
    centred = tl.where(within, values - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + epsilon)
    scale = tl.load(weights + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(weights + WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    found = centred * inverse[:, None] * scale[None, :] + bias[None, :]
    tl.store(y + place, found.to(tl.float16), mask=within)


def launch_attention(
    qkv: Any, y: Any, batch: int, tokens: int, heads: int, size: int, scale: float, cut: AttentionCut | None = None
) -> None:
    """y `(batch, tokens, heads · size)` from qkv `(batch, tokens, 3 · heads · size)`, on torch's current stream."""
    cut = cut or choose_attention(tokens, size)
    attention[(-(-tokens // cut.rows) * batch * heads,)](
        qkv, y, tokens, scale * _LOG2_E, HEADS=heads, SIZE=size, ROWS=cut.rows, KEYS=cut.keys, STAGES=cut.stages,
        num_warps=cut.warps,
    )  # fmt: skip


def launch_layer_norm(
    x: Any, weights: Any, y: Any, rows: int, width: int, epsilon: float, cut: NormCut | None = None
) -> None:
    """y `(rows, width)` from x and weights `(2, width)`, on torch's current stream."""
    cut = cut or choose_norm(width)
    layer_norm[(-(-rows // cut.rows),)](
        x, weights, y, rows, epsilon, WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=cut.rows,
        num_warps=cut.warps,
    )  # fmt: skip
