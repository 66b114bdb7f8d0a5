"""Values between products: made by some, passed through elementwise operators, read by others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

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


def region_of(value: ir.Value, readers: Sequence[Layer], makers: Mapping[ir.Value, Layer]) -> Region | str:
    """The region of a value that products multiply, or why there is none, as a reason for a skip.

    Args:
        value: Of the main graph.
        readers: The products that read it.
        makers: Every product of the main graph, by what it gives, bias included.
    """
    values: dict[ir.Value, None] = {}
    nodes = {layer.node for layer in readers}
    found: list[Layer] = []
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if at in values:
            continue
        values[at] = None
        maker = makers.get(at)
        if maker is not None:
            found.append(maker)
            nodes |= {maker.node, maker.bias_node or maker.node}
            values[maker.node.outputs[0]] = None
            continue
        operands = _operands(at)
        if isinstance(operands, str):
            return operands
        producer = at.producer()
        assert producer is not None  # it has operands
        nodes.add(producer)
        waiting += operands
    for item in values:
        if item.is_graph_output():
            return f"'{item.name}' is an output of the model"
        other = next((node for node, _ in item.uses() if node not in nodes), None)
        if other is not None:
            return f"'{item.name}' is read by {other.op_type} too"
    if any(maker.channels != readers[0].weight.shape[0] for maker in found):
        return "its input's channels are not those of the products behind it"
    return Region(value, tuple(found), tuple(readers), tuple(values))


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
