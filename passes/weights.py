"""Reading a layer's constant operand: an initializer or Constant, also behind Transpose, Reshape and kin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant value as a node sees it, read only when asked.

    Attributes:
        source: The value that holds the stored numbers (an initializer, or a Constant node's output).
        stored: Its tensor, as stored.
        steps: What lies between the stored tensor and the node, source first: ("Transpose", (1, 0)).
        shape: Shape after the steps.
    """

    source: ir.Value
    stored: ir.TensorProtocol
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> ir.DataType:
        """Element type; the steps keep it."""
        return self.stored.dtype

    @property
    def name(self) -> str:
        """Name of the stored value."""
        return self.source.name or ""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two operands that are the same numbers in the same layout."""
        return (id(self.source), self.steps)

    def numpy(self) -> Array:
        """Read the numbers and apply the steps; nothing is kept."""
        array: Array = self.stored.numpy()
        for operator, argument in self.steps:
            array = array.transpose(argument) if operator == "Transpose" else array.reshape(argument)
        return array


def read(value: ir.Value | None) -> Constant | str:
    """Follow `value` back to stored numbers.

    Returns:
        The constant, or why there is none, as the end of a sentence: "weight 'w' is a graph input".
    """
    if value is None:
        return "has no weight operand"
    nodes: list[ir.Node] = []
    at = value
    while True:
        stored = _stored(at)
        if stored is not None:
            break
        producer = at.producer()
        if producer is None:
            kind = "a graph input" if at.is_graph_input() else "a value of an outer graph"
            return f"weight '{at.name}' is {kind}, not a constant"
        if producer.op_type not in _STEPS or producer.domain not in ("", "ai.onnx") or not producer.inputs[0]:
            return f"weight '{at.name}' is computed by {producer.op_type} ('{producer.name}'), not a constant"
        nodes.append(producer)
        at = producer.inputs[0]
    shape = tuple(int(size) for size in stored.shape.numpy())
    steps: list[tuple[str, tuple[int, ...]]] = []
    for node in reversed(nodes):
        step = _STEPS[node.op_type](node, shape)
        if isinstance(step, str):
            return step
        operator, argument, shape = step
        if operator:
            steps.append((operator, argument))
    return Constant(at, stored, tuple(steps), shape)


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain in ("", "ai.onnx"):
        return ir.convenience.get_const_tensor(value)
    return None


Step = tuple[str, tuple[int, ...], tuple[int, ...]]
"""An operator ("" for none), its argument, and the shape that comes out."""


def _identity(node: ir.Node, shape: tuple[int, ...]) -> Step | str:
    return "", (), shape


def _transpose(node: ir.Node, shape: tuple[int, ...]) -> Step | str:
    given = node.attributes.get_ints("perm")
    order = tuple(given) if given is not None else tuple(reversed(range(len(shape))))
    return "Transpose", order, tuple(shape[axis] for axis in order)


def _reshape(node: ir.Node, shape: tuple[int, ...]) -> Step | str:
    wanted = _integers(node, 1)
    if wanted is None:
        return f"weight '{node.outputs[0].name}' is reshaped to a computed shape ('{node.name}')"
    sizes = [shape[axis] if size == 0 and axis < len(shape) else size for axis, size in enumerate(wanted)]
    return _as_reshape(tuple(np.empty(shape, np.bool_).reshape(sizes).shape))


def _squeeze(node: ir.Node, shape: tuple[int, ...]) -> Step | str:
    axes = _integers(node, 1)
    if axes is None:
        return _as_reshape(tuple(size for size in shape if size != 1))
    dropped = {axis % len(shape) for axis in axes}
    return _as_reshape(tuple(size for axis, size in enumerate(shape) if axis not in dropped))


def _unsqueeze(node: ir.Node, shape: tuple[int, ...]) -> Step | str:
    axes = _integers(node, 1) or []
    return _as_reshape(tuple(np.expand_dims(np.empty(shape, np.bool_), tuple(axes)).shape))


def _as_reshape(shape: tuple[int, ...]) -> Step:
    return "Reshape", shape, shape


def _integers(node: ir.Node, position: int) -> list[int] | None:
    """A constant integer operand, or None when it is missing or computed."""
    operand = node.inputs[position] if len(node.inputs) > position else None
    tensor = _stored(operand) if operand is not None else None
    return None if tensor is None else [int(item) for item in tensor.numpy().reshape(-1)]


_STEPS: dict[str, Callable[[ir.Node, tuple[int, ...]], Step | str]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
