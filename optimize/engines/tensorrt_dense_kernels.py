"""Dense products with what follows them in Triton: y = after(x · w + bias), float16 in and out, float32 sums.

x `(M, K)`, w `(K, N)` or `(N, K)`, bias `(N,)`, residual and y `(M, N)`, each of fewer than 2³¹ elements. K and N
must divide by the tile; rows of M that a tile has too many are masked.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from optimize.engines.tensorrt_dense_choice import Cut, Form

_GELU = {Form.GELU_TANH: 1, Form.GELU_ERF: 2}


@triton.jit
def tanh(x, ASSEMBLY: tl.constexpr):
    """By NVIDIA's approximation (relative error 2⁻¹¹, PTX ISA), or by exponentials."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def load_x(x, m, k, M, K: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, DESCRIBED: tl.constexpr):
    """x from row m and column k on, `(ROWS, DEPTH)`."""
    if DESCRIBED:
        found = x.load([m, k])
    else:
        row = tl.minimum(m + tl.arange(0, ROWS), M - 1)
        found = tl.load(x + row[:, None] * K + (k + tl.arange(0, DEPTH))[None, :])
    return found


@triton.jit
def load_w(
    w, k, n, N: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """w from k and column n on, `(DEPTH, COLUMNS)`, however it is stored."""
    depth = k + tl.arange(0, DEPTH)
    column = n + tl.arange(0, COLUMNS)
    if DESCRIBED and TRANSPOSED:
        found = w.load([n, k]).T
    elif DESCRIBED:
        found = w.load([k, n])
    elif TRANSPOSED:
        found = tl.load(w + column[None, :] * K + depth[:, None])
    else:
        found = tl.load(w + depth[:, None] * N + column[None, :])
    return found


@triton.jit
def start(
    residual, m, n, M, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """What sums start from: the residual where it is wanted early, or nothing."""
    if RESIDUAL and EARLY:
        row = tl.minimum(m + tl.arange(0, ROWS), M - 1)
        column = n + tl.arange(0, COLUMNS)
        return tl.load(residual + row[:, None] * N + column[None, :]).to(tl.float32)
    return tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def finish(
    total, bias, residual, y, m, n, M, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, EARLY: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Bias, GELU, residual; stored by rows."""
    row = m + tl.arange(0, ROWS)
    column = n + tl.arange(0, COLUMNS)
    total += tl.load(bias + column).to(tl.float32)[None, :]
    if GELU == 1:
        half = 0.5 * total
        total = half + half * tanh(total * (0.7978845608028654 + 0.035677408136300125 * total * total), ASSEMBLY)
    if GELU == 2:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    if RESIDUAL and not EARLY:
        inside = tl.minimum(row, M - 1)
        total += tl.load(residual + inside[:, None] * N + column[None, :]).to(tl.float32)
    place = row[:, None] * N + column[None, :]
    tl.store(y + place, total.to(tl.float16), mask=(row < M)[:, None])


@triton.jit
def tile_at(tile, M, N: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile; GROUP tiles of rows go through all columns together, for the L2 cache."""
    down = tl.cdiv(M, ROWS)
    across: tl.constexpr = N // WIDTH
    group = tile // (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    within = tile % (GROUP * across)
    return (group * GROUP + within % height) * ROWS, within // height * WIDTH


@triton.jit
def one_tile(
    tile, x, w, w_more, bias, residual, y, M, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, GROUP: tl.constexpr,
    DESCRIBED: tl.constexpr, EARLY: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """`(ROWS, COLUMNS + MORE)` of y; MORE columns have sums of their own (widths such as 192)."""
    m, n = tile_at(tile, M, N, ROWS, COLUMNS + MORE, GROUP)
    total = start(residual, m, n, M, N, ROWS, COLUMNS, RESIDUAL, EARLY)
    if MORE:
        more = start(residual, m, n + COLUMNS, M, N, ROWS, MORE, RESIDUAL, EARLY)
    for k in tl.range(0, K, DEPTH, num_stages=STAGES):
        left = load_x(x, m, k, M, K, ROWS, DEPTH, DESCRIBED)
        total = tl.dot(left, load_w(w, k, n, N, K, COLUMNS, DEPTH, TRANSPOSED, DESCRIBED), total)
        if MORE:
            more = tl.dot(left, load_w(w_more, k, n + COLUMNS, N, K, MORE, DEPTH, TRANSPOSED, DESCRIBED), more)
    finish(total, bias, residual, y, m, n, M, N, ROWS, COLUMNS, GELU, RESIDUAL, EARLY, ASSEMBLY)
    if MORE:
        finish(more, bias, residual, y, m, n + COLUMNS, M, N, ROWS, MORE, GELU, RESIDUAL, EARLY, ASSEMBLY)


@triton.jit
def product(
    x, w, w_more, bias, residual, y, M, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, GROUP: tl.constexpr,
    DESCRIBED: tl.constexpr, EARLY: tl.constexpr, ASSEMBLY: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """A tile a program; with TURNS as many programs as run at once, each through several, loading ahead."""
    if TURNS:
        tiles = tl.cdiv(M, ROWS) * (N // (COLUMNS + MORE))
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            one_tile(
                tile, x, w, w_more, bias, residual, y, M, N, K, TRANSPOSED, GELU, RESIDUAL, ROWS, COLUMNS, MORE,
                DEPTH, STAGES, GROUP, DESCRIBED, EARLY, ASSEMBLY,
            )  # fmt: skip
    else:
        one_tile(
            tl.program_id(0), x, w, w_more, bias, residual, y, M, N, K, TRANSPOSED, GELU, RESIDUAL, ROWS, COLUMNS,
            MORE, DEPTH, STAGES, GROUP, DESCRIBED, EARLY, ASSEMBLY,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One product.

    Attributes:
        rows, n, k: x is `(rows, k)`, y `(rows, n)`.
        form: What follows the product.
        transposed: Whether w is stored as `(n, k)`.
    """

    rows: int
    n: int
    k: int
    form: Form
    transposed: bool = False


def constants(sizes: Sizes, cut: Cut, residual: bool, assembly: bool) -> dict[str, Any]:
    """What the kernel is compiled for, by its arguments' names."""
    return {
        "N": sizes.n, "K": sizes.k, "TRANSPOSED": sizes.transposed, "GELU": _GELU.get(sizes.form, 0),
        "RESIDUAL": residual,
        "ROWS": cut.rows, "COLUMNS": cut.columns, "MORE": cut.more, "DEPTH": cut.depth, "STAGES": cut.stages,
        "GROUP": cut.group, "DESCRIBED": cut.described, "EARLY": cut.early and sizes.form not in _GELU,
        "ASSEMBLY": assembly, "TURNS": cut.turns > 0,
    }  # fmt: skip


def launch(
    x: Any, w: Any, bias: Any, residual: Any, y: Any, sizes: Sizes, cut: Cut, processors: int, assembly: bool = True
) -> None:
    """Put one product on torch's current stream; compiles what these sizes need at their first call.

    Args:
        x, w, bias, residual, y: Tensors, or anything with Triton's `data_ptr()` and `dtype`; residual may be None.
        sizes: Shapes and form.
        cut: How the work is cut; must divide the sizes.
        processors: Multiprocessors of the GPU.
        assembly: Whether Tanh is NVIDIA's instruction.
    """
    rows, n, k = sizes.rows, sizes.n, sizes.k
    tiles = -(-rows // cut.rows) * (n // (cut.columns + cut.more))
    more = w
    if cut.described:
        x = TensorDescriptor(x, [rows, k], [k, 1], [cut.rows, cut.depth])
        w, more = (_described(w, sizes, width, cut.depth) for width in (cut.columns, cut.more or cut.columns))
    product[(min(tiles, cut.turns * processors) if cut.turns else tiles,)](
        x, w, more, bias, bias if residual is None else residual, y, rows,
        **constants(sizes, cut, residual is not None, assembly), num_warps=cut.warps,
    )  # fmt: skip


def _described(w: Any, sizes: Sizes, width: int, depth: int) -> TensorDescriptor:
    if sizes.transposed:
        return TensorDescriptor(w, [sizes.n, sizes.k], [sizes.k, 1], [width, depth])
    return TensorDescriptor(w, [sizes.k, sizes.n], [sizes.n, 1], [depth, width])
