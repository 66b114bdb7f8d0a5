"""Embedding tables in INT8, one scale per row.

Before: `y = Gather(table, ids)`, table `(rows, width)` float, axis 0
After: `y = Cast(Gather(codes, ids)) * Gather(scales, ids)`, codes `(rows, width)` INT8, scales `(rows, 1)`

Only the rows that are looked up are turned back into floats, so a table of a large vocabulary shrinks to a
quarter and a look-up costs next to nothing more. A row's scale is max |row| / 127: each element is off by half
of that at most. A padding row of zeros stays zero.

Leaves alone, by name: tables below `min_bytes`, of another rank or type, read by anything but such a Gather (a
tied output layer, say), that hold NaN or infinity, and what `skip` names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic

from passes import names, numerics
from passes.base import Pass, PassContext, PassResult, Pattern, Skip
from passes.qdq import Editor, drop_unused_constants
from passes.quantize._lazy import reading
from passes.target import Target

PATTERN = "embedding"
CHUNK_ROWS = 4096
"""Rows quantized at a time: memory stays at this many rows in float32."""

SHORTEST_ROW = 8
"""Elements; with fewer, a row's float32 scale takes what its codes save."""

Array = np.ndarray[Any, np.dtype[Any]]


class QuantizeEmbeddings(Pass):
    """Store embedding tables in INT8 with one scale per row."""

    min_bytes: int = pydantic.Field(1 << 20, ge=0, description="Smaller tables are left alone: nothing to gain.")
    skip: tuple[str, ...] = pydantic.Field(
        (), description="Look-ups to leave alone: shell patterns of node names, modules or operator types."
    )

    def check(self, target: Target) -> str | None:
        """ONNX Runtime only: TensorRT would fold the table back to floats when it builds."""
        if target.dialect == "tensorrt":
            return "TensorRT folds the table back to floats when it builds; leave this pass out."
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Quantize every large enough table of the main graph."""
        editor = Editor(model)
        skips: list[Skip] = []
        changed: list[str] = []
        before = after = 0
        for value in [*model.graph.initializers.values()]:
            reads = [node for node, _ in value.uses()]
            if not any(_is_lookup(node, value) for node in reads):
                continue
            first = next(node for node in reads if _is_lookup(node, value))
            reason = self._reason_to_skip(value, reads)
            scales = _row_scales(value) if reason is None else None
            if scales is None:
                reason = reason or f"table '{value.name}' holds NaN or infinity"
                skips.append(Skip(names.name_of(first), reason, names.module_of(first)))
                continue
            assert value.const_value is not None
            before += value.const_value.nbytes
            _rewrite(editor, value, scales, reads)
            after += value.const_value.size + scales.nbytes
            changed.append(names.module_of(first) or str(value.name))
            drop_unused_constants([value])
        return PassResult(
            patterns=(Pattern(PATTERN, len(changed)),),
            skips=tuple(skips),
            changed=tuple(changed),
            figures={"table bytes before": before, "table bytes after": after} if changed else {},
        )

    def _reason_to_skip(self, value: ir.Value, reads: list[ir.Node]) -> str | None:
        tensor = value.const_value
        if tensor is None:
            return f"table '{value.name}' is no stored constant"
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return f"table '{value.name}' is {tensor.dtype.name}, needs a float type"
        if len(tensor.shape) != 2:
            return f"expected a table of rank 2, got {len(tensor.shape)} (shape {list(tensor.shape.numpy())})"
        if tensor.nbytes < self.min_bytes:
            return f"table '{value.name}' has {tensor.nbytes:,} bytes, fewer than min_bytes ({self.min_bytes:,})"
        if tensor.shape.numpy()[1] < SHORTEST_ROW:
            return f"table '{value.name}' has rows of {tensor.shape.numpy()[1]}, too short to gain by a scale each"
        others = [node for node in reads if not _is_lookup(node, value)]
        if others:
            return f"table '{value.name}' is also read by {others[0].op_type} '{others[0].name}'"
        if value.is_graph_output():
            return f"table '{value.name}' is a graph output"
        named = [node for node in reads if names.matches(node, self.skip)]
        return "named under skip" if named else None


def _is_lookup(node: ir.Node, table: ir.Value) -> bool:
    """Whether a node picks whole rows of the table."""
    is_gather = node.op_type == "Gather" and node.domain in ("", "ai.onnx")
    return is_gather and node.inputs[0] is table and node.attributes.get_int("axis", 0) in (0, -2)


def _row_scales(value: ir.Value) -> Array | None:
    """(rows, 1) float32, one step in real units; None when the table is not finite."""
    assert value.const_value is not None
    rows = int(value.const_value.shape.numpy()[0])
    largest = np.empty((rows, 1), np.float32)
    with reading(value.const_value) as table:
        for start in range(0, rows, CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            largest[part] = np.abs(np.asarray(table[part], np.float32)).max(axis=1, keepdims=True)
        del table  # or the file stays mapped
    return numerics.symmetric_scale(largest, numerics.INT8) if np.isfinite(largest).all() else None


def _rewrite(editor: Editor, value: ir.Value, scales: Array, reads: list[ir.Node]) -> None:
    tensor = value.const_value
    assert tensor is not None

    def evaluate() -> ir.TensorProtocol:
        with reading(tensor) as table:
            codes = np.empty(table.shape, np.int8)
            for start in range(0, table.shape[0], CHUNK_ROWS):
                rows = slice(start, start + CHUNK_ROWS)
                codes[rows] = numerics.quantize(np.asarray(table[rows], np.float32), scales[rows], numerics.INT8)
            del table  # or the file stays mapped
        return ir.tensor(codes)

    stem = str(value.name)
    lazy = ir.LazyTensor(evaluate, dtype=ir.DataType.INT8, shape=ir.Shape(tensor.shape.numpy()))
    codes = editor.tensor(f"{stem}.codes", lazy)
    steps = editor.tensor(f"{stem}.scales", ir.tensor(scales.astype(tensor.dtype.numpy())))
    for node in reads:
        graph, output = node.graph, node.outputs[0]
        assert graph is not None
        kept = str(output.name)
        picked = editor.node("Gather", [codes, node.inputs[1]], [f"{kept}.codes"], like=node)
        step = editor.node("Gather", [steps, node.inputs[1]], [f"{kept}.scales"], like=node)
        cast = editor.node(
            "Cast", picked.outputs, [f"{kept}.cast"], like=node, attributes={"to": int(tensor.dtype)}
        )
        scaled = editor.node("Mul", [cast.outputs[0], step.outputs[0]], [f"{kept}.scaled"], like=node)
        result = scaled.outputs[0]
        result.type, result.shape = output.type, output.shape
        graph.insert_before(node, [picked, step, cast, scaled])
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        result.name = kept
