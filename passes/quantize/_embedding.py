"""Embedding tables in INT8, one scale per row: a quarter of the bytes, dequantized after the look-up.

Before: y = Gather(table, ids)                       table: (rows, width) float32, constant
After:  y = Cast(Gather(table_int8, ids)) * Gather(scale, ids)      scale: (rows, 1) float32, one step in real units

Standard operators; only the rows that are looked up are dequantized.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from passes import layers as weighted
from passes import names, numerics
from passes.base import Skip
from passes.qdq import Editor
from passes.weights import Constant, read

FEWEST_ROWS = 256
"""Smaller tables save too little to be worth three more operators."""

FEWEST_COLUMNS = 8
"""Below, a row's scale takes as much as the row saves; so a second run passes over the scales of the first."""


def quantize_embeddings(
    model: ir.Model, editor: Editor, skip: Sequence[str]
) -> tuple[list[tuple[ir.Node, int]], list[Skip], list[ir.Value]]:
    """Quantize every embedding table of the main graph.

    Returns:
        (look-up node, bytes of its table before) for each one done; those left alone; values that may have
        lost their last reader.
    """
    done: list[tuple[ir.Node, int]] = []
    skips: list[Skip] = []
    spent: list[ir.Value] = []
    for node in list(model.graph):
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
            continue
        table = read(node.inputs[0])
        if isinstance(table, str) or table.dtype not in weighted.FLOATS or len(table.shape) != 2:
            continue
        reason = _refusal(node, table, skip)
        if reason:
            skips.append(weighted.skip(node, reason))
            continue
        spent += [value for value in node.inputs[:1] if value is not None]
        _replace(model.graph, editor, node, table)
        done.append((node, table.stored.nbytes))
    return done, skips, spent


def _refusal(node: ir.Node, table: Constant, skip: Sequence[str]) -> str:
    if names.matches(node, skip):
        return "listed under skip"
    if node.attributes.get_int("axis", 0) != 0:
        return "looks up columns, not rows"
    if table.shape[0] < FEWEST_ROWS:
        return f"the table has {table.shape[0]} rows, fewer than {FEWEST_ROWS}: not worth it"
    if table.shape[1] < FEWEST_COLUMNS:
        return f"the table's rows hold {table.shape[1]} numbers, fewer than {FEWEST_COLUMNS}"
    if not np.isfinite(np.asarray(table.numpy(), np.float32)).all():
        return f"the table '{table.name}' holds NaN or infinity"
    return ""


def _replace(graph: ir.Graph, editor: Editor, node: ir.Node, table: Constant) -> None:
    kind = table.dtype
    largest = np.abs(np.asarray(table.numpy(), np.float32)).max(axis=1, keepdims=True)
    scale = numerics.symmetric_scale(largest, numerics.INT8, kind.numpy())

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(numerics.quantize(np.asarray(table.numpy(), np.float32), scale, numerics.INT8))

    lazy = ir.LazyTensor(evaluate, dtype=ir.DataType.INT8, shape=ir.Shape(table.shape))
    stored, steps = editor.shared(
        ("embedding", table.key),
        lambda: (editor.tensor(f"{table.name}_int8", lazy), editor.constant(f"{table.name}_scale", scale)),
    )
    old = node.outputs[0]
    rows = editor.node("Gather", [stored, node.inputs[1]], [f"{old.name}_int8"], like=node)
    cast = editor.node("Cast", [rows.outputs[0]], [f"{old.name}_steps"], like=node, attributes={"to": kind})
    step = editor.node("Gather", [steps, node.inputs[1]], [f"{old.name}_scale"], like=node)
    product = editor.node("Mul", [cast.outputs[0], step.outputs[0]], [f"{old.name}_dequantized"], like=node)
    graph.insert_before(node, [rows, cast, step, product])
    new = product.outputs[0]
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    kept, old.name = old.name, f"{old.name}_replaced"
    new.name = kept
    graph.remove(node, safe=True)
