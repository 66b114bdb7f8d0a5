"""Values between products: made by some, passed through elementwise operators, read by others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from passes.layers import Layer

UNARY = frozenset({
    "Abs", "Cast", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Swish", "Tanh",
})  # fmt: skip
BINARY = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
"""With a second operand that is made in the same region, or a constant of one element."""


@dataclasses.dataclass(frozen=True)
class Region:
    """One value, last axis channels, each computed from the same channel of the products behind it.

    Attributes:
        value: What the readers multiply.
        makers: Products that it comes from; nothing outside the region reads them.
        readers: Products that read it; nothing else does.
        values: All values whose channels these are.
    """

    value: ir.Value
    makers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    values: tuple[ir.Value, ...]


def region_of(reader: Layer, layers: Sequence[Layer], graph: ir.Graph) -> Region | str:
    """The region whose value `reader` multiplies, or why there is none, as a reason for a skip.

    Args:
        reader: A product.
        layers: All products of the model.
        graph: The main graph; the region must lie in it.
    """
    value = reader.activation
    readers = tuple(layer for layer in layers if layer.activation is value)
    if any(layer.graph is not graph for layer in readers):
        return "lies in a sub-graph, where calibration does not reach"
    makers = {id(layer.output): layer for layer in layers if layer.graph is graph}
    inside: dict[int, ir.Value] = {}
    nodes: set[ir.Node] = set()
    found: list[Layer] = []
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if id(at) in inside:
            continue
        inside[id(at)] = at
        if id(at) in makers:
            maker = makers[id(at)]
            found.append(maker)
            nodes |= {maker.node} | ({maker.bias_node} if maker.bias_node is not None else set())
            inside[id(maker.node.outputs[0])] = maker.node.outputs[0]
            continue
        operands = _operands(at)
        if isinstance(operands, str):
            return operands
        nodes.add(at.producer())  # type: ignore[arg-type]  # it has operands
        waiting += operands
    readable = nodes | {layer.node for layer in readers}
    for item in inside.values():
        if item.is_graph_output():
            return f"'{item.name}' is an output of the model"
        other = next((node for node, _ in item.uses() if node not in readable), None)
        if other is not None:
            return f"'{item.name}' is read by {other.op_type} too"
    if any(maker.channels != reader.weight.shape[0] for maker in found):
        return "its input's channels are not those of the products behind it"
    return Region(value, tuple(found), readers, tuple(inside.values()))


def _operands(value: ir.Value) -> list[ir.Value] | str:
    """The values that `value` is computed from channel by channel, or why it is not."""
    node = value.producer()
    if node is None:
        return f"its input comes from '{value.name}', which no product makes"
    if node.domain in ("", "ai.onnx") and node.op_type in UNARY and node.inputs[0] is not None:
        return [node.inputs[0]]
    if node.domain in ("", "ai.onnx") and node.op_type in BINARY:
        computed = [item for item in node.inputs if item is not None and not _single(item)]
        if computed:
            return computed
    return f"its input comes through {node.op_type}, whose channels cannot be doubled"


def _single(value: ir.Value) -> bool:
    """A constant of one element."""
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1
