"""How large the whole numbers of an input may be: what it is looked up in says so."""

from __future__ import annotations

import onnx_ir as ir

PASS_THROUGH = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"})
"""Operators whose result holds the values of their first input."""


def index_limits(model: ir.Model) -> dict[str, int]:
    """Exclusive upper bound per whole-number input that indexes a tensor of fixed size (Gather).

    An input that reaches several tables gets the smallest; one that reaches none is left out.
    """
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.dtype is None or not value.dtype.is_integer():
            continue
        found = list(_tables(value))
        if found:
            limits[str(value.name)] = min(found)
    return limits


def _tables(value: ir.Value) -> list[int]:
    sizes: list[int] = []
    for node, index in value.uses():
        if node.op_type == "Gather" and node.domain == "" and index == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.shape is not None:
                size = table.shape[axis]
                if isinstance(size, int):
                    sizes.append(size)
        elif node.op_type in PASS_THROUGH and node.domain == "" and index == 0:
            sizes.extend(_tables(node.outputs[0]))
    return sizes
