"""Operators that give their input back.

Before: a = Identity(x)  b = Cast(a, to=float32)  c = Mul(b, 1.0)  d = Dropout(c)  y = Relu(d)
After:  y = Relu(x)

Counts as giving its input back: Identity; Cast to the type it has; Dropout outside training; Concat, Sum,
Max, Min and Mean of one input; Transpose that keeps the order; Pad by nothing; and + 0, - 0, * 1, / 1, ** 1 with a
constant of one element that adds no dimension.

Leaves alone: an operator between a graph input, a weight or another output and a graph output: there it
gives the output its name.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import Scope, is_inference_dropout, scopes

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}
COMMUTES = ("Add", "Mul")
OF_ONE = ("Concat", "Sum", "Max", "Min", "Mean")
KINDS = ("Identity", "Cast", "Dropout", "Transpose", "Pad", *OF_ONE, *NEUTRAL)


class NoOps(Pass):
    """Remove operators that give their input back."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove them in every graph."""
        removed: Counter[str] = Counter()
        for scope in scopes(model):
            for node in scope:
                source = passed_through(node)
                if source is not None and _bypass(scope, node, source):
                    removed[node.op_type] += 1
        return PassResult(patterns=tuple(Pattern(kind, removed[kind]) for kind in KINDS))


def passed_through(node: ir.Node) -> ir.Value | None:
    """The input that the node gives back unchanged, or None."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return None
    first = node.inputs[0]
    kind = node.op_type
    if kind == "Identity" or (kind in OF_ONE and len(node.inputs) == 1):
        return first
    if kind == "Cast":
        to = node.attributes.get_int("to", 0)
        return first if first.dtype is not None and first.dtype == to else None
    if kind == "Dropout":
        is_mask_used = len(node.outputs) > 1 and _is_needed(node.outputs[1])
        return first if is_inference_dropout(node) and not is_mask_used else None
    if kind == "Transpose":
        order = node.attributes.get_ints("perm", ())
        return first if order and list(order) == list(range(len(order))) else None
    if kind == "Pad":
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return first if pads is not None and not pads.any() else None
    if kind in NEUTRAL and len(node.inputs) == 2:
        return _neutral(node)
    return None


def _neutral(node: ir.Node) -> ir.Value | None:
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op_type in COMMUTES:
        pairs.append((node.inputs[1], node.inputs[0]))
    for value, other in pairs:
        number = constant(other)
        if value is None or number is None or number.size != 1 or number.flat[0] != NEUTRAL[node.op_type]:
            continue
        adds_dimensions = number.ndim > 0 and (value.shape is None or len(value.shape) < number.ndim)
        if not adds_dimensions:
            return value
    return None


def constant(value: ir.Value | None, largest: int = 64) -> np.ndarray | None:
    """A small constant's elements; None when it is not constant, overridable by a caller, or large."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None:
        node = value.producer()
        if node is None or node.op_type != "Constant" or "value" not in node.attributes:
            return None
        tensor = node.attributes["value"].as_tensor()
    return tensor.numpy() if tensor.size <= largest else None


def _is_needed(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _bypass(scope: Scope, node: ir.Node, source: ir.Value) -> bool:
    """Let `source` stand for the node's result; False where the node must stay for its output's name."""
    result = node.outputs[0]
    is_output = result.is_graph_output()
    if is_output:
        maker = source.producer()
        if maker is None or maker.graph is not scope or source.is_graph_output():
            return False
        if sum(output is result for output in scope.outputs) != 1:
            return False
    if source.type is None:
        source.type = result.type
    if source.shape is None or is_output:
        source.shape = result.shape
    name = result.name
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    scope.remove(node, safe=True)
    if is_output:
        source.name = name
    return True
