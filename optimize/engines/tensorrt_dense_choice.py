"""How a dense product in 16 bits is cut into tiles, and what may follow it: a short table from measured figures."""

from __future__ import annotations

import dataclasses
import enum

SOURCE = "docs/gpu/2026-11-28-dense-sweep.json"
"""NVIDIA H200, 4096 rows, (N, K) = (3072, 768), (768, 3072), (2304, 768) and (768, 768), 200 ways in all; one
attention (32 samples of 128 tokens, 12 heads of 64) and one norm (4096 rows of 768). By `tests/benchmarks/gpu/
dense_sweep.py`."""

BITS = 4
"""Of MatMulNBits, for all of these: 8 is a product with 8-bit weights."""

STORED = {32: False, 64: True}
"""`block_size` of a product: whether w is stored as `(N, K)`."""

REST = 128
"""`block_size` of what is no product: attention and layer normalisation, told apart by `accuracy_level`."""

ATTENTION, NORM = 0, 1

MULTIPLE = 64
"""K and N of a product divide by this, which every tile needs."""

ADDRESSABLE = 1 << 31
"""Elements that the kernels' 32-bit offsets reach."""

HEAD_SIZES = (16, 32, 64, 128)
"""Of attention."""

NORM_WIDTH = 4096
"""Of a row that one program normalises, at most."""

_MANY_ROWS = 1024
"""Rows from which the ways measured at 4096 are taken."""

_WIDE = 2048
"""N from which programs that take tiles in turns won: between 768, where they lost, and 2304."""

_LARGE_SHARED = range(90, 110)
"""Compute capabilities with 227 KiB of shared memory a program and the bulk copy engine; others have 99 or more."""


class Form(enum.IntEnum):
    """What follows y = x · w + bias; a residual may be added to any."""

    PLAIN = 0
    GELU_TANH = 1
    GELU_ERF = 2


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        rows, columns, more: A tile is `(rows, columns + more)`; `more` columns have sums of their own.
        depth: Of K a step.
        warps, stages: Warps of a program, and steps in flight.
        group: Tiles of rows that go through all columns together.
        described: Whether the bulk copy engine loads (compute capability 9.0 and later).
        turns: Programs a multiprocessor that go through all tiles in turns; 0: a program a tile.
        early: Whether sums start from the residual, rather than end with it.
    """

    rows: int
    columns: int
    depth: int = 64
    warps: int = 4
    stages: int = 3
    more: int = 0
    group: int = 8
    described: bool = False
    turns: int = 0
    early: bool = False


@dataclasses.dataclass(frozen=True)
class AttentionCut:
    """ROWS queries a program, KEYS keys a step."""

    rows: int
    keys: int
    warps: int = 4
    stages: int = 1


@dataclasses.dataclass(frozen=True)
class NormCut:
    """Rows that one program normalises."""

    rows: int
    warps: int


def choose(rows: int, n: int, k: int, residual: bool, transposed: bool, capability: int) -> Cut:
    """The cut for x `(rows, k)` times w `(k, n)`; n and k divide by 64.

    Measured at 4096 rows, compute capability 9.0: 128 × 128 in turns for wide N, 1.08 to 1.09 times cuBLAS's bare
    product; 64 × 192 for narrow N, 1.15. Starting from the residual pays for few steps (K 768) alone. w as `(n, k)`
    was not measured in turns. Fewer rows, other widths and other GPUs follow from these by what fits; they were not
    measured.

    Args:
        rows, n, k: Sizes.
        residual: Whether one is added.
        transposed: Whether w is stored as `(n, k)`.
        capability: 90 for 9.0; below it the bulk copy engine is not used.
    """
    tile, columns = 128 if rows > 64 else 64, 128 if n % 128 == 0 else 64
    if capability not in _LARGE_SHARED:
        return Cut(tile, columns, depth=32)
    if rows >= _MANY_ROWS and n >= _WIDE and n % 128 == 0:
        return Cut(128, 128, described=True, turns=0 if transposed else 2)
    if rows >= _MANY_ROWS and n % 192 == 0:
        return Cut(64, 128, more=64, described=True, early=residual and k < 1024)
    return Cut(tile, columns, described=True)


def choose_attention(tokens: int, size: int) -> AttentionCut:
    """The cut for samples of that many tokens and heads of that size; measured at 128 tokens, size 64."""
    if tokens <= 64:
        return AttentionCut(64 if tokens > 32 else 32 if tokens > 16 else 16, 64 if tokens > 32 else 32)
    if tokens <= 128:
        return AttentionCut(64, 128)
    return AttentionCut(64, 64, stages=3 if size <= 64 else 2)


def choose_norm(width: int) -> NormCut:
    """The cut for rows of that width; measured at 768."""
    return NormCut(2, 2) if width <= 1024 else NormCut(1, 4)
