"""The first and the last layer of a model, which some targets keep in floating point.

First: reads a floating-point input of the model with no other layer in between (an image's stem; a transformer that
reads token numbers has none). Last: no other layer lies behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import onnx_ir as ir

from passes import matching as m
from passes.layers import FLOATS
from passes.target import Target

Choice = Literal["auto", "quantize", "keep"]
"""What a recipe says of such a layer; `auto` is the target's rule."""

LAYERS = ("MatMul", "Gemm", "Conv", "Attention", "LSTM", "GRU", "RNN")
"""In the name of every operator that is a layer, a fused or quantized one too: `MatMulIntegerToFloat`."""

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def at_edges(
    model: ir.Model, nodes: Iterable[ir.Node], target: Target, form: str, *, first: Choice, last: Choice
) -> Mapping[ir.Node, str]:
    """The layers among `nodes` that stay in floating point for their place, each with the reason.

    Args:
        model: Nothing is changed.
        nodes: Layers that could be quantized.
        target: Its rules decide for `auto`.
        form: The format, as the rules spell it: "int8".
        first: What the recipe says of the first layer.
        last: What it says of the last.
    """
    rules = target.quantize
    found: dict[ir.Node, str] = {}
    for place, choice, rule, is_there in (
        ("first", first, rules.keep_first, _first(model)),
        ("last", last, rules.keep_last, _last(model)),
    ):
        if choice == "quantize":
            continue
        for node in nodes:
            if node not in is_there or node in found:
                continue
            if choice == "keep":
                found[node] = f"the model's {place} layer: `{place}_layer: keep`"
            elif node.op_type in rule.get(form, ()):
                found[node] = f"the model's {place} layer, kept on this target unless `{place}_layer: quantize`"
    return found


def _first(model: ir.Model) -> set[ir.Node]:
    fed = {value for value in model.graph.inputs if value.dtype in FLOATS}
    behind: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in model.graph:
        operands = {value for value in node.inputs if value is not None}
        late = bool(operands & behind)
        if _is_layer(node, model):
            if not late and operands & fed:
                found.add(node)
            late = True
        if late:
            behind.update(node.outputs)
        elif operands & fed:
            fed.update(node.outputs)
    return found


def _last(model: ir.Model) -> set[ir.Node]:
    leading: set[ir.Node] = set()
    found: set[ir.Node] = set()
    for node in reversed(model.graph):
        readers = {reader for value in node.outputs for reader in m.users(value)}
        leads = any(reader in leading or reader.graph is not model.graph for reader in readers)
        if _is_layer(node, model) and not leads:
            found.add(node)
        if leads or _is_layer(node, model):
            leading.add(node)
    return found


def _is_layer(node: ir.Node, model: ir.Model) -> bool:
    """Whether it is one, or may hold some: a branch, a loop, a local function."""
    if any(name in node.op_type for name in LAYERS):
        return True
    holds = any(attribute.type in GRAPHS for attribute in node.attributes.values())
    return holds or node.op_identifier() in model.functions
