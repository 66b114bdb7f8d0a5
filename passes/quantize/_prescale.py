"""Input channels scaled without changing the model: x @ w = (x / s) @ (s * w), s one factor per channel.

Before: x = LayerNormalization(h, g, b);  y = MatMul(x, w)
After:  x = LayerNormalization(h, g / s, b / s);  y = MatMul(x, s * w)

The division goes into what makes x where nothing else reads it: a LayerNormalization's or RMSNormalization's scale
and bias, the columns and bias of a Gemm, or of a MatMul with its Add, also through a Reshape that keeps the last
axis. Elsewhere one Mul serves all weights that read x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.qdq import Editor, drop_unused_constants, insert_after_source

Array = np.ndarray[Any, np.dtype[Any]]

NORMS = ("LayerNormalization", "RMSNormalization")


def divide(editor: Editor, value: ir.Value, readers: Sequence[ir.Node], divisor: Array) -> bool:
    """Divide what `readers` read as their first input by (channels,) factors.

    Returns:
        Whether the division went into what makes the value; False: a Mul was put behind it.
    """
    if {node for node, _ in value.uses()} <= set(readers) and not value.is_graph_output():
        owners = _owners(value, len(divisor))
        if owners:
            for node, position in owners:
                _scale_operand(editor, node, position, divisor)
            return True
    kind = (value.dtype or ir.DataType.FLOAT).numpy()
    factors = editor.constant(f"{value.name}_prescale", (1 / divisor).astype(kind))
    mul = editor.node("Mul", [value, factors], [f"{value.name}_prescaled"], like=readers[0])
    made = mul.outputs[0]
    made.type, made.shape = value.type, value.shape
    graph = readers[0].graph
    assert isinstance(graph, ir.Graph)
    insert_after_source(value, graph, [mul])
    for node in readers:
        node.replace_input_with(0, made)
    return False


def _owners(value: ir.Value, channels: int) -> list[tuple[ir.Node, int]]:
    """`(node, input)` of the constants that fix each channel's size of `value`; [] where there are none."""
    node = value.producer()
    while node is not None and node.op_type == "Reshape" and _keeps_channels(node, channels):
        source = node.inputs[0]
        if source is None or len(source.uses()) != 1 or source.is_graph_output():
            return []
        node = source.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return []
    held: list[tuple[ir.Node, int]] = []
    if node.op_type in NORMS:
        if node.attributes.get_int("axis", -1) != -1 or any(output.uses() for output in node.outputs[1:]):
            return []
        held = [(node, position) for position in range(1, len(node.inputs)) if node.inputs[position] is not None]
    elif node.op_type == "Gemm":
        if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
            return []
        held = [(node, position) for position in range(1, len(node.inputs)) if node.inputs[position] is not None]
    elif node.op_type == "MatMul":
        held = [(node, 1)]
    elif node.op_type == "Add":
        summed = node.inputs[0]
        product = None if summed is None else summed.producer()
        if summed is None or product is None or product.op_type != "MatMul":
            return []
        if len(summed.uses()) != 1 or summed.is_graph_output():
            return []
        held = [(node, 1), (product, 1)]
    for owner, position in held:
        operand = owner.inputs[position]
        tensor = None if operand is None else ir.convenience.get_const_tensor(operand)
        if tensor is None or operand is None or operand.is_graph_input():
            return []
        shape = tensor.shape.numpy()
        if not shape or shape[0 if _is_transposed(owner, position) else -1] != channels:
            return []
    return held


def _keeps_channels(node: ir.Node, channels: int) -> bool:
    source = node.inputs[0]
    before = None if source is None or source.shape is None or not len(source.shape) else source.shape[-1]
    return before == channels


def _is_transposed(node: ir.Node, position: int) -> bool:
    return node.op_type == "Gemm" and position == 1 and node.attributes.get_int("transB", 0) == 1


def _scale_operand(editor: Editor, node: ir.Node, position: int, divisor: Array) -> None:
    """Give `node` a copy of its constant operand, divided along its channels."""
    operand = node.inputs[position]
    assert operand is not None
    tensor = ir.convenience.get_const_tensor(operand)
    assert tensor is not None
    by = divisor[:, None] if _is_transposed(node, position) else divisor
    scaled = (np.asarray(tensor.numpy(), np.float32) / by).astype(tensor.dtype.numpy())
    node.replace_input_with(position, editor.tensor(f"{operand.name}_prescaled", ir.tensor(scaled)))
    drop_unused_constants([operand])
