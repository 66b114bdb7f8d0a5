"""Query, key and value of an attention from one product, and their heads laid out in one step.

Before: q, k, v = Transpose<0, 2, 1, 3>(Reshape(x W + b, (batch, tokens, heads, size)))     three times
        and perhaps one of them times a power of two, as an attention scales its query
After:  h = Transpose<0, 2, 1, 3>(Reshape(x [Wq Wk Wv] + [bq bk bv], (batch, tokens, 3 heads, size)))
        q, k, v = Split(h, along the heads)         the power of two inside W and b, which loses nothing

As three products the biases are added while heads are laid out, in a kernel for each of them; as one with a bias
TensorRT for RTX adds it inside the product and lays out all heads in one kernel.

Leaves alone: products whose weights or biases are no constants, fewer than three of one value, sizes of heads that
differ, and heads that something else reads before they are laid out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

PATTERN = "stacked_heads"
WEIGHT_LIMIT = 1 << 28
"""Elements of a weight that is still read to be stacked: 512 MiB in 16 bits."""


class StackedHeads(Pass):
    """Compute an attention's query, key and value as one product and lay out their heads at once."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Stack every three of the main graph."""
        return rewrite(model, context, (PATTERN,), _match)


@dataclasses.dataclass(frozen=True)
class _Heads:
    """One product with its bias, cut into heads.

    Attributes:
        x: What is multiplied, `(batch, tokens, width)` or `(batch · tokens, width)`.
        weight: `(width, heads · size)`; for `Gemm` with `transB`, the other way round.
        bias: `(heads · size,)`.
        transposed: Whether the weight is.
        target: Shape that the product is reshaped to, the last two as numbers.
        laid_out: The transposed value, `(batch, heads, tokens, size)`.
        scaled: The same times `factor`, or itself.
        factor: A power of two.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    transposed: bool
    target: tuple[int, ...]
    laid_out: ir.Value
    scaled: ir.Value
    factor: float


def _match(rewriting: Rewriting) -> None:
    groups: dict[ir.Value, list[_Heads]] = {}
    for transpose in rewriting.nodes("Transpose"):
        found = _heads(transpose)
        if found is not None:
            groups.setdefault(found.x, []).append(found)
    for group in groups.values():
        node = group[0].laid_out.producer()
        assert node is not None
        if len(group) != 3:
            rewriting.miss(PATTERN, node, f"{len(group)} products of one value are cut into heads, needs 3")
        elif len({(one.target, one.transposed) for one in group}) != 1:
            rewriting.miss(PATTERN, node, "the three are not cut into heads alike")
        else:
            _write(rewriting, node, group)


def _heads(transpose: ir.Node) -> _Heads | None:
    if list(m.attribute(transpose, "perm", [])) != [0, 2, 1, 3] or transpose.inputs[0] is None:
        return None
    reshape = m.made_by(transpose.inputs[0], "Reshape")
    target = m.integers(reshape.inputs[1]) if reshape is not None else None
    if (
        reshape is None
        or target is None
        or len(target) != 4
        or m.attribute(reshape, "allowzero", 0) * (0 in target)
    ):
        return None
    if not (
        m.is_private(transpose.inputs[0]) and reshape.inputs[0] is not None and m.is_private(reshape.inputs[0])
    ):
        return None
    gemm = m.made_by(reshape.inputs[0], "Gemm")
    if gemm is not None:
        plain = m.attribute(gemm, "alpha", 1.0) == m.attribute(gemm, "beta", 1.0) == 1.0
        if not plain or m.attribute(gemm, "transA", 0) or len(gemm.inputs) != 3:
            return None
        x, weight, bias = gemm.inputs
        return _checked(x, weight, bias, bool(m.attribute(gemm, "transB", 0)), target, transpose.outputs[0])
    add = m.made_by(reshape.inputs[0], "Add")
    for product, bias in m.operands(add) if add is not None else ():
        matmul = m.made_by(product, "MatMul")
        if matmul is not None and product is not None and m.is_private(product):
            return _checked(matmul.inputs[0], matmul.inputs[1], bias, False, target, transpose.outputs[0])
    return None


def _checked(
    x: ir.Value | None,
    weight: ir.Value | None,
    bias: ir.Value | None,
    transposed: bool,
    target: tuple[int, ...],
    laid_out: ir.Value,
) -> _Heads | None:
    """The parts, where they are constants that fit each other."""
    if x is None or weight is None or bias is None or not (m.is_constant(weight) and m.is_constant(bias)):
        return None
    width = m.static(weight, 0 if transposed else 1)
    if m.rank(weight) != 2 or width is None or m.rank(bias) != 1 or m.dimension(bias, 0) != width:
        return None
    batch, tokens, heads, size = target
    heads, size = (width // size if heads == -1 else heads), (width // heads if size == -1 else size)
    if heads <= 0 or heads * size != width:
        return None
    return _Heads(x, weight, bias, transposed, (batch, tokens, heads, size), laid_out, *_scaled(laid_out))


def _scaled(laid_out: ir.Value) -> tuple[ir.Value, float]:
    """The value times a power of two and that power, where nothing else reads the value; else itself and 1."""
    mul = m.only_user(laid_out)
    found = m.scalar_operand(mul) if mul is not None and mul.op_type == "Mul" else None
    if mul is None or found is None or found[0] is not laid_out or math.frexp(found[1])[0] != 0.5:
        return laid_out, 1.0
    return mul.outputs[0], found[1]


def _write(rewriting: Rewriting, node: ir.Node, group: list[_Heads]) -> None:
    first = group[0]
    weights = [m.constant(one.weight, limit=WEIGHT_LIMIT) for one in group]
    biases = [m.constant(one.bias, limit=WEIGHT_LIMIT) for one in group]
    factors = [one.factor for one in group]
    wide = [_times(array, factor) for array, factor in zip(weights, factors, strict=True) if array is not None]
    added = [_times(array, factor) for array, factor in zip(biases, factors, strict=True) if array is not None]
    if len(wide) != 3 or len(added) != 3 or len({array.dtype for array in (*wide, *added)}) != 1:
        rewriting.miss(PATTERN, node, "the weights and biases are not readable constants of one type")
        return
    draft = rewriting.draft(PATTERN, node, least_opset=13)
    stacked = draft.constant(
        np.concatenate(wide, axis=0 if first.transposed else 1), f"{first.weight.name}_stacked"
    )
    bias = draft.constant(np.concatenate(added), f"{first.bias.name}_stacked")
    if m.rank(first.x) == 2:
        product = draft.op("Gemm", [first.x, stacked, bias], transB=int(first.transposed))
    else:
        product = draft.op("Add", [draft.op("MatMul", [first.x, stacked]), bias])
    batch, tokens, heads, size = first.target
    shape = draft.constant(np.array([batch, tokens, 3 * heads, size], np.int64), "stacked_heads")
    laid_out = draft.op("Transpose", [draft.op("Reshape", [product, shape])], perm=[0, 2, 1, 3])
    sizes = draft.constant(np.array([heads] * 3, np.int64), "heads")
    for one, part in zip(group, draft.ops("Split", [laid_out, sizes], 3, axis=1), strict=True):
        draft.replace(one.scaled, part)
    rewriting.propose(draft)


def _times(array: np.ndarray[Any, Any], factor: float) -> np.ndarray[Any, Any]:
    return array if factor == 1.0 else (array * array.dtype.type(factor)).astype(array.dtype)
