"""Cutting sub-graphs out of a model: which nodes stand behind a value, and copies of them that stand alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from passes.draft import Draft

SUBGRAPH_LIMIT = 500
"""A rewrite whose old side cannot be cut out within this many nodes is compared on the
model's own activations."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a draft's old sub-graph is cut out of the model.

    Attributes:
        boundary: Values that the draft's new nodes read.
        nodes: The old nodes behind the boundary, in order; None when there are too many.
        sources: Everything that either side reads: the boundary, shapes, graph inputs.
    """

    boundary: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...] | None
    sources: tuple[ir.Value, ...]


def cut(draft: Draft) -> Cut:
    """Find the old side of a draft."""
    boundary = tuple(value for value in draft.boundary() if weight(value) is None)
    nodes = _behind(tuple(draft.replacements), frozenset(boundary))
    return Cut(boundary, nodes, _inputs_of(nodes or (), boundary, draft.replacements))


def weight(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor behind an initializer that no caller can replace, or None."""
    return None if value.is_graph_input() or value.producer() is not None else value.const_value


def has_subgraph(node: ir.Node) -> bool:
    """Whether a node holds graphs of its own (If, Loop, Scan), which may read any value around it."""
    return any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values())


def ancestors(values: Iterable[ir.Value]) -> tuple[ir.Node, ...] | None:
    """Every node that `values` come from, in running order; None when one of them holds a sub-graph."""
    seen: dict[ir.Node, None] = {}
    stack = [(node, False) for value in values if (node := value.producer()) is not None]
    while stack:
        node, done = stack.pop()
        if done:
            seen.setdefault(node)
        elif node not in seen:
            if has_subgraph(node):
                return None
            stack.append((node, True))
            producers = (value.producer() for value in node.inputs if value is not None)
            stack += [(producer, False) for producer in producers if producer is not None and producer not in seen]
    return tuple(seen)


def _behind(outputs: Sequence[ir.Value], boundary: frozenset[ir.Value]) -> tuple[ir.Node, ...] | None:
    """Nodes that make `outputs` from `boundary`, shapes, graph inputs and constants; None when too many.

    A Shape is not looked behind: what it gave is known, and what it measured may be the whole model.
    """
    seen: dict[ir.Node, None] = {}
    stack = [(node, False) for value in outputs if (node := value.producer()) and node.op_type != "Shape"]
    while stack:
        node, done = stack.pop()
        if done:
            seen.setdefault(node)
            continue
        if node in seen:
            continue
        if len(stack) + len(seen) > SUBGRAPH_LIMIT or has_subgraph(node):
            return None
        stack.append((node, True))
        for value in node.inputs:
            producer = value.producer() if value is not None and value not in boundary else None
            if producer is not None and producer not in seen and producer.op_type != "Shape":
                stack.append((producer, False))
    return tuple(seen)


def _inputs_of(
    nodes: Sequence[ir.Node], boundary: Sequence[ir.Value], outputs: Iterable[ir.Value]
) -> tuple[ir.Value, ...]:
    """Boundary values first, then whatever else is read that is neither made by `nodes` nor constant."""
    cut = set(boundary)
    made = {output for node in nodes for output in node.outputs} - cut
    read = [value for node in nodes for value in node.inputs if value is not None]
    read += [output for output in outputs if nodes == () or output not in made]
    rest = [value for value in read if value not in made and value not in cut and weight(value) is None]
    return tuple(dict.fromkeys([*boundary, *rest]))


def clone(
    nodes: Sequence[ir.Node],
    prefix: str,
    mapping: dict[ir.Value, ir.Value],
    weights: dict[ir.Value, ir.Value],
) -> tuple[ir.Node, ...]:
    """Copies of `nodes` that read what `mapping` says, or copies of weights; both tables grow on the way."""
    clones = []
    for index, node in enumerate(nodes):
        inputs = [
            None
            if value is None
            else mapping[value]
            if value in mapping
            else weight_clone(value, f"{prefix}_w{index}_{position}", weights)
            for position, value in enumerate(node.inputs)
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=f"{prefix}_{index}",
        )
        for position, (ours, theirs) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
            ours.name = f"{prefix}_{index}_{position}" if theirs.name != "" else ""
            ours.type = theirs.type
            if theirs not in mapping:
                mapping[theirs] = ours
        clones.append(copy)
    return tuple(clones)


def weight_clone(value: ir.Value, name: str, weights: dict[ir.Value, ir.Value]) -> ir.Value:
    """The copy of an initializer, with the same tensor."""
    if value not in weights:
        weights[value] = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    return weights[value]
