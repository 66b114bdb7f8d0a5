"""Trial inputs for a graph: small, random, over its dynamic dimensions, with padded and fully masked rows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]

SIZES = ((3, 6, 5, 7, 4), (3, 4, 4, 4, 4))
"""Sizes given to dynamic dimensions in order of appearance, one tuple per attempt. The first keeps all apart,
so that mixed-up axes show; the second makes all but the batch equal, for graphs whose unnamed dimensions must
agree."""

PASS_THROUGH = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")


def feeds(model: ir.Model, rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """Yield inputs to try, best first.

    Integers that index a table (token ids) are drawn over the table; other integers and booleans are a
    padding mask's values: the first row all ones, the last all zeros (fully masked), the rows between random.
    Floats are normal.
    """
    for sizes in SIZES:
        known: dict[str, int] = {}
        yield {
            str(value.name): _array(value, _shape(value, known, sizes), rng)
            for value in model.graph.inputs
            if value.name not in model.graph.initializers
        }


def _shape(value: ir.Value, known: dict[str, int], sizes: tuple[int, ...]) -> tuple[int, ...]:
    if value.shape is None:
        return ()
    shape = []
    for axis, dimension in enumerate(value.shape):
        if isinstance(dimension, int):
            shape.append(dimension)
        elif dimension.value is None:
            shape.append(sizes[min(axis, len(sizes) - 1)])
        else:
            shape.append(_size(dimension.value, known, sizes))
    return tuple(shape)


def _size(symbol: str, known: dict[str, int], sizes: tuple[int, ...]) -> int:
    """The size of a dimension named by a symbol or by arithmetic over symbols ("past + tokens")."""
    if symbol not in known:
        try:
            tree = ast.parse(symbol, mode="eval").body
        except SyntaxError:
            tree = ast.Name(id=symbol)
        if isinstance(tree, ast.BinOp):
            left, right = (_size(ast.unparse(side), known, sizes) for side in (tree.left, tree.right))
            known[symbol] = max(1, _arithmetic(tree.op, left, right))
        elif isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            known[symbol] = tree.value
        else:
            known[symbol] = sizes[min(len(known), len(sizes) - 1)]
    return known[symbol]


def _arithmetic(operator: ast.operator, left: int, right: int) -> int:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    return left // max(right, 1)


def _array(value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if dtype.kind not in "iub":
        return rng.standard_normal(shape).astype(dtype)
    rows = _table_rows(value)
    if rows is not None:
        return rng.integers(0, rows, shape).astype(dtype)
    mask = rng.integers(0, 2, shape)
    if mask.ndim >= 2 and shape[0] > 1:
        mask[0], mask[-1] = 1, 0
    return np.asarray(mask).astype(dtype)


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest constant table that the value indexes, or None when it indexes none."""
    found = []
    for node, position in value.uses():
        if node.op_type == "Gather" and position == 1 and not (node.attributes.get_int("axis", 0)):
            table = node.inputs[0]
            if table is not None and table.const_value is not None and len(table.const_value.shape) == 2:
                found.append(int(table.const_value.shape.numpy()[0]))
        elif node.op_type in PASS_THROUGH and position == 0:
            rows = _table_rows(node.outputs[0])
            if rows is not None:
                found.append(rows)
    return min(found) if found else None
