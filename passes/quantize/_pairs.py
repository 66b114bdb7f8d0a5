"""Pairs of QuantizeLinear and DequantizeLinear that are there already, from an earlier step or another tool.

A value that comes from a pair has 8 bits: a second one, with another scale, would only round it again. Operators
that move values between (`MOVES`) change nothing about that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.qdq import insert_after_source

MOVES = frozenset({
    "Concat", "DepthToSpace", "Flatten", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that commute with a quantizer of one scale: each result is one of the inputs, unchanged."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A quantizer with one stored scale.

    Attributes:
        quantize: Its QuantizeLinear.
        dequantize: The DequantizeLinear behind.
        scale: (), what both read.
        zero_point: (), what both read.
    """

    quantize: ir.Node
    dequantize: ir.Node
    scale: ir.Value
    zero_point: ir.Value

    @property
    def stored(self) -> ir.Value:
        """The value in 8 bits."""
        return self.quantize.outputs[0]

    @property
    def result(self) -> ir.Value:
        """The value as floating point again."""
        return self.dequantize.outputs[0]


def pair_behind(value: ir.Value, *, signed: bool) -> tuple[Pair, bool] | None:
    """The pair that `value` comes from, and whether operators that move values lie between.

    Args:
        value: A floating-point activation.
        signed: Stored as int8 with a zero point of 0, else as uint8.
    """
    at: ir.Value | None = value
    while (node := m.made_by(at)) is not None and node.op_type in MOVES - {"Concat"} and moves(node):
        at = node.inputs[0]
    found = _pair(m.made_by(at, "DequantizeLinear"), signed)
    return None if found is None else (found, at is not value)


def pair_on(value: ir.Value, graph: ir.Graph, *, signed: bool) -> Pair | None:
    """A pair of `graph` that reads `value`, moved right behind what makes it, so that any reader may take it."""
    for quantize in quantizers_on(value, graph, "QuantizeLinear"):
        for reader in m.users(quantize.outputs[0]):
            found = _pair(reader if reader.op_type == "DequantizeLinear" else None, signed)
            if found is None or reader.graph is not graph:
                continue
            graph.remove(reader)
            graph.insert_after(quantize, reader)
            return found
    return None


def quantizers_on(value: ir.Value, graph: ir.Graph, op_type: str) -> Iterator[ir.Node]:
    """The quantizers of `graph` that read `value`, each moved right behind what makes it before it is given."""
    for node in m.users(value):
        if node.op_type != op_type or node.domain or node.inputs[0] is not value or node.graph is not graph:
            continue
        if all(read is None or read.is_initializer() for read in node.inputs[1:]):
            graph.remove(node)
            insert_after_source(value, graph, [node])
            yield node


def stored_scale(quantize: ir.Node, *, signed: bool) -> tuple[ir.Value, ir.Value] | None:
    """A quantizer's (scale, zero point), both scalars and initializers, for the stored type; else None."""
    if len(quantize.inputs) < 3:
        return None
    _, scale, zero = quantize.inputs
    if scale is None or zero is None or m.rank(scale) != 0:
        return None
    if not (scale.is_initializer() and zero.is_initializer()):
        return None
    number = m.constant(zero)
    if number is None or number.dtype != (np.int8 if signed else np.uint8) or (signed and number.any()):
        return None
    return scale, zero


def moves(node: ir.Node) -> bool:
    """Whether an operator of `MOVES` gives nothing but values that it read, as they were."""
    if len(node.outputs) > 1:
        return False
    if node.op_type != "Resize":
        return True
    fills = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return node.attributes.get_string("mode", "nearest") == "nearest" and not fills


def _pair(dequantize: ir.Node | None, signed: bool) -> Pair | None:
    """The pair that ends with the node, where both halves read the same stored scale and zero point."""
    quantize = None if dequantize is None else m.made_by(dequantize.inputs[0], "QuantizeLinear")
    if dequantize is None or quantize is None:
        return None
    found = stored_scale(quantize, signed=signed)
    if found is None or tuple(dequantize.inputs[1:]) != found:
        return None
    return Pair(quantize, dequantize, *found)
