"""Every graph of a model: the main one, its functions, and the sub-graphs inside both."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from passes.names import module_of

Scope = ir.Graph | ir.Function

RANDOM = frozenset(
    {"RandomUniform", "RandomNormal", "RandomUniformLike", "RandomNormalLike", "Multinomial", "Bernoulli"}
)
"""Standard operators that give another result on every call."""


def scopes(model: ir.Model) -> Iterator[Scope]:
    """The main graph, each function, and every sub-graph of both, outer before inner."""
    for outer in outermost(model):
        yield outer
        yield from outer.subgraphs()


def outermost(model: ir.Model) -> tuple[Scope, ...]:
    """The main graph and each function."""
    return (model.graph, *model.functions.values())


def nodes(model: ir.Model) -> int:
    """Number of nodes in all graphs."""
    return sum(1 for scope in scopes(model) for _ in scope)


def is_random(node: ir.Node) -> bool:
    """Whether two calls of the operator may differ: random ones, and Dropout that may be training."""
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in RANDOM or (node.op_type == "Dropout" and not is_inference_dropout(node))


def is_inference_dropout(node: ir.Node) -> bool:
    """Whether a Dropout certainly passes its input through: no training flag, or one that is false."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    flag = node.inputs[2].const_value
    return flag is not None and not node.inputs[2].is_graph_input() and not bool(flag.numpy().any())


def place(node: ir.Node) -> str:
    """How a report names a node: its own name, with its source module."""
    module = module_of(node)
    return f"{node.name or node.op_type}" + (f" ({module})" if module else "")
