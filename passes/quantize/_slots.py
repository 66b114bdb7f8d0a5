"""Where a target wants pairs besides the inputs of weighted layers: skip connections and attention.

Skip connection: `y = Add(Conv(x, w), s)`: with s in 8 bits TensorRT can run the addition inside the convolution and
give 8 bits out; with s in floating point the sum is that too (developer guide, "Working with Quantized Types").

Attention: `y = MatMul(Softmax(... MatMul(q, k) ...), v)`: all four inputs of both products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from passes import matching as m
from passes import names
from passes.base import Pattern, Skip

BETWEEN = ("Add", "Sub", "Mul", "Div", "Where", "Tanh", "Cast", "Clip", "Identity")
"""What may lie between query times key and the softmax."""

BEHIND = ("Cast", "Dropout", "Identity", "Where")
"""What may lie between the softmax and its product with the values."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """One input of a node that is to be read in 8 bits.

    Attributes:
        node: The reader.
        index: Which of its inputs.
        name: The value that stood there when the slot was found, by which calibration knows it.
        beside: The convolution whose result the node adds it to, for a skip connection.
    """

    node: ir.Node
    index: int
    name: str
    beside: ir.Node | None = None

    @property
    def value(self) -> ir.Value:
        """What stands there now."""
        value = self.node.inputs[self.index]
        assert value is not None  # such a slot is never made
        return value

    def skip(self, reason: str) -> Skip:
        """A `Skip` for the node that names its module."""
        return _skip(self.node, reason)


def slot(node: ir.Node, index: int, beside: ir.Node | None = None) -> Slot:
    """The slot for what stands there now."""
    value = node.inputs[index]
    return Slot(node, index, (value.name if value is not None else None) or "", beside)


def patterns(slots: Iterable[Slot]) -> tuple[Pattern, ...]:
    """How many of each kind, zero counts included."""
    added = [each.beside is not None for each in slots]
    return Pattern("skip connection", sum(added)), Pattern("attention input", len(added) - sum(added))


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
        if other is None or other is result or _is_stored(other) or names.matches(reader, skip):
            continue
        found[reader] = slot(reader, 1 if reader in found else index, node)
    return list(found.values())


def attention_inputs(model: ir.Model, skip: Sequence[str]) -> tuple[list[Slot], list[Skip]]:
    """The inputs of both products around each softmax of the main graph, and the attentions that have none.

    Args:
        model: Nothing is changed.
        skip: Patterns of nodes, modules or operator types to leave alone.
    """
    products: list[ir.Node] = []
    skips: list[Skip] = []
    for node in model.graph:
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            reason = "attention in one operator has no inputs of its products: quantize before fuse.attention"
            skips.append(_skip(node, reason))
        if node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
            continue
        scores, weighted = _scores(node.inputs[0]), _weighted(node.outputs[0])
        around = [product for product in (scores, *weighted) if product is not None]
        if scores is None or not weighted or any(product.graph is not model.graph for product in around):
            continue
        if any(names.matches(each, skip) for each in (node, *around)):
            skips.append(_skip(node, "named under skip"))
            continue
        products += around
    slots = [slot(product, index) for product in dict.fromkeys(products) for index in (0, 1)]
    return [each for each in slots if m.made_by(each.value, "DequantizeLinear") is None], skips


def _skip(node: ir.Node, reason: str) -> Skip:
    return Skip(names.name_of(node), reason, names.module_of(node))


def _is_product(node: ir.Node) -> bool:
    """Whether it multiplies two computed values: a stored weight makes it a layer."""
    return node.op_type == "MatMul" and not any(_is_stored(operand) for operand in node.inputs)


def _is_stored(value: ir.Value | None) -> bool:
    """Whether it is a weight, quantized or not."""
    return m.is_constant(m.through(value, "DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity"))


def _scores(value: ir.Value | None, depth: int = 8) -> ir.Node | None:
    """The product that `value` comes from."""
    node = m.made_by(value)
    if node is None or depth == 0:
        return None
    if node.op_type == "MatMul":
        return node if _is_product(node) else None
    if node.op_type not in BETWEEN:
        return None
    return next((found for operand in node.inputs if (found := _scores(operand, depth - 1))), None)


def _weighted(value: ir.Value, depth: int = 4) -> list[ir.Node]:
    """The products that have `value` on their left."""
    found: list[ir.Node] = []
    for node in m.users(value) if depth else ():
        if node.op_type == "MatMul" and node.inputs[0] is value and _is_product(node):
            found.append(node)
        elif node.op_type in BEHIND:
            found += _weighted(node.outputs[0], depth - 1)
    return found
