"""Looking at a graph from a node upwards: producers, constants, uses and dimensions, whatever their
spelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

SMALL = 1 << 16
"""Constants with more elements are weights: never read just to recognise a pattern."""


def made_by(value: ir.Value | None, *op_types: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if its operator is one of `op_types` (any when empty) of `domain`."""
    if value is None:
        return None
    node = value.producer()
    if node is None or node.domain not in (domain, "ai.onnx" if domain == "" else domain):
        return None
    return node if not op_types or node.op_type in op_types else None


def through(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """`value`, or what it was before any chain of the given one-input operators ("Identity", "Cast")."""
    while (node := made_by(value, *op_types)) is not None:
        value = node.inputs[0]
    return value


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is the same on every run: an initializer that is no graph input, or a Constant
    node."""
    if value is None:
        return False
    value = through(value, "Identity")
    if value is None or value.is_graph_input():
        return False
    return value.const_value is not None or made_by(value, "Constant") is not None


def constant(value: ir.Value | None, limit: int = SMALL) -> np.ndarray[Any, Any] | None:
    """The array behind a constant of at most `limit` elements, or None."""
    value = through(value, "Identity")
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    if tensor is None:
        node = made_by(value, "Constant")
        tensor = None if node is None else ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None or tensor.size > limit:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a one-element constant, or None."""
    array = constant(value, limit=1)
    if array is None or array.size != 1:
        return None
    return float(array.reshape(-1)[0])


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """The numbers behind a small integer constant, flattened, or None."""
    array = constant(value, limit=64)
    if array is None or array.dtype.kind not in "iu":
        return None
    return tuple(int(item) for item in array.reshape(-1))


def operands(node: ir.Node) -> tuple[tuple[ir.Value | None, ir.Value | None], ...]:
    """The inputs of a two-input node in both orders, for operators that commute."""
    left, right = node.inputs[0], node.inputs[1]
    return ((left, right), (right, left))


def scalar_operand(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(other input, number) of a commuting node with one scalar constant, or None."""
    for value, number in operands(node):
        found = scalar(number)
        if found is not None and value is not None and not is_constant(value):
            return value, found
    return None


def unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """(value before multiplication by scalars, their product)."""
    factor = 1.0
    while True:
        node = made_by(value, "Mul", "Div")
        if node is None:
            return value, factor
        if node.op_type == "Mul":
            found = scalar_operand(node)
            if found is None:
                return value, factor
            value, number = found
            factor *= number
        else:
            divisor, inner = scalar(node.inputs[1]), node.inputs[0]
            if not divisor or inner is None or is_constant(inner):
                return value, factor
            value, factor = inner, factor / divisor


def users(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read the value, sub-graphs included, each once."""
    return tuple(dict.fromkeys(node for node, _ in value.uses()))


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, or None when several do or the graph gives the value out."""
    found = users(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def is_private(value: ir.Value) -> bool:
    """Whether nothing but one node reads the value, so that it may vanish into a fused operator."""
    return only_user(value) is not None


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None when unknown."""
    if value is None:
        return None
    if value.shape is not None:
        return value.shape.rank()
    return None if value.const_value is None else value.const_value.shape.rank()


def dimension(value: ir.Value | None, axis: int) -> int | str | None:
    """One dimension: a number, a symbol, or None when unknown. Negative axes count from the end."""
    if value is None:
        return None
    shape = value.shape if value.shape is not None else None
    if shape is None and value.const_value is not None:
        shape = ir.Shape(tuple(value.const_value.shape.numpy()))
    if shape is None or not -shape.rank() <= axis < shape.rank():
        return None
    found = shape[axis]
    if isinstance(found, int):
        return found
    return found.value


def static(value: ir.Value | None, axis: int) -> int | None:
    """One dimension if it is a number, else None."""
    found = dimension(value, axis)
    return found if isinstance(found, int) else None


def same_dimension(left: int | str | None, right: int | str | None) -> bool:
    """Whether two dimensions are surely equal: the same number or the same symbol."""
    return left is not None and left == right


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, or `default`; a reference to a function's attribute counts as absent."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    return found.value


def axes(node: ir.Node, position: int = 1) -> tuple[int, ...] | None:
    """The axes of a reduction or (un)squeeze, from input or attribute, or None when not constant."""
    if len(node.inputs) > position and node.inputs[position] is not None:
        return integers(node.inputs[position])
    found = attribute(node, "axes")
    return None if found is None else tuple(int(axis) for axis in found)
