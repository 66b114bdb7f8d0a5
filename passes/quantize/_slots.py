"""Where a target wants pairs besides the inputs of weighted layers: skip connections and attention.

Skip connection: `y = Add(Conv(x, w), s)`: with s in 8 bits TensorRT runs the addition inside the convolution
(developer guide, "Working with Quantized Types", placement recommendations).

Attention: `y = MatMul(Softmax(... MatMul(q, k) ...), v)`: all four inputs of both products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from passes import matching as m
from passes import names
from passes.base import Skip

BETWEEN = ("Add", "Sub", "Mul", "Div", "Where", "Tanh", "Cast", "Clip", "Identity")
"""What may lie between query times key and the softmax."""

BEHIND = ("Cast", "Dropout", "Identity", "Where")
"""What may lie between the softmax and its product with the values."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """One input of a node that is to be read in 8 bits."""

    node: ir.Node
    index: int

    @property
    def value(self) -> ir.Value:
        """What stands there now."""
        value = self.node.inputs[self.index]
        assert value is not None  # such a slot is never made
        return value

    @property
    def name(self) -> str:
        """The value's name, by which calibration knows it."""
        return self.value.name or ""

    def skip(self, reason: str) -> Skip:
        """A `Skip` for the node that names its module."""
        return Skip(self.node.name or self.node.op_type, reason, names.module_of(self.node))


def skip_connections(nodes: Iterable[ir.Node], skip: Sequence[str]) -> list[Slot]:
    """The other input of each Add that alone reads a convolution's result; each Add once.

    Where both inputs are such results (a shortcut with a convolution of its own) the second is meant.

    Args:
        nodes: The layers that are quantized.
        skip: Patterns of nodes, modules or operator types to leave alone (`passes.names.matches`).
    """
    found: dict[ir.Node, Slot] = {}
    for node in nodes:
        if node.op_type != "Conv":
            continue
        result = node.outputs[0]
        while (reader := m.only_user(result)) is not None and reader.op_type == "BatchNormalization":
            result = reader.outputs[0]
        if reader is None or reader.op_type != "Add" or reader.graph is not node.graph:
            continue
        index = 1 if reader.inputs[0] is result else 0
        other = reader.inputs[index]
        if other is None or other is result or m.is_constant(other) or names.matches(reader, skip):
            continue
        found[reader] = Slot(reader, 1) if reader in found else Slot(reader, index)
    return list(found.values())


def attention_inputs(model: ir.Model, skip: Sequence[str]) -> tuple[list[Slot], list[Skip]]:
    """The inputs of both products around each softmax of the main graph, and the attentions that have none.

    Args:
        model: Nothing is changed.
        skip: Patterns of nodes, modules or operator types to leave alone.
    """
    slots: list[Slot] = []
    skips: list[Skip] = []
    for node in model.graph:
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            reason = "attention in one operator has no inputs of its products: quantize before fuse.attention"
            skips.append(Slot(node, 0).skip(reason))
        if node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
            continue
        scores, weighted = _scores(node.inputs[0]), _weighted(node.outputs[0])
        if scores is None or weighted is None:
            continue
        if any(names.matches(product, skip) for product in (scores, node, weighted)):
            skips.append(Slot(node, 0).skip("named under skip"))
            continue
        slots += [Slot(product, index) for product in (scores, weighted) for index in (0, 1)]
    return slots, skips


def _scores(value: ir.Value | None, depth: int = 8) -> ir.Node | None:
    """The product of two computed operands that `value` comes from."""
    node = m.made_by(value)
    if node is None or depth == 0:
        return None
    if node.op_type == "MatMul":
        return None if any(m.is_constant(operand) for operand in node.inputs) else node
    if node.op_type not in BETWEEN:
        return None
    return next((found for operand in node.inputs if (found := _scores(operand, depth - 1))), None)


def _weighted(value: ir.Value, depth: int = 4) -> ir.Node | None:
    """The product that has `value` on its left."""
    for node in m.users(value) if depth else ():
        if node.op_type == "MatMul" and m.through(node.inputs[0], "Identity") is value:
            return None if m.is_constant(node.inputs[1]) else node
        if node.op_type in BEHIND and (found := _weighted(node.outputs[0], depth - 1)):
            return found
    return None
