"""Names in a captured graph: inputs and outputs as the user asked, everything else unique around them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Key under which torch's exporter keeps Python stack traces, with file paths of this machine."""

GRAPH_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
RANGE_CONSTRAINTS = "pkg.torch.export.ExportedProgram.range_constraints"


def rename_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the graph's inputs and outputs, in order, and make every other value's name unique.

    An output that is itself a graph input or an initializer, or that is listed twice, gets an Identity of
    its own, so that each name belongs to one value. A value whose name an input or output takes is renamed.

    Args:
        model: Changed in place.
        inputs: One name per graph input.
        outputs: One name per graph output.
    """
    graph = model.graph
    _give_outputs_their_own_value(graph)
    interface = {id(value) for value in (*graph.inputs, *graph.outputs)}
    taken = {*inputs, *outputs}
    for value in _values(graph):
        if id(value) in interface:
            continue
        name = value.name or "value"
        if name in taken:
            name = _free(name, taken)
            value.name = name
        taken.add(name)
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    _name_nodes(graph)


def rename_axes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename symbolic dimensions everywhere, inside expressions too: {"s77": "batch"}."""
    if not names:
        return
    pattern = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in sorted(names, key=len, reverse=True)))
    for value in _values(model.graph):
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                pattern.sub(lambda match: names[match.group()], str(dim.value))
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            ]
        )


def strip_traces(model: ir.Model) -> None:
    """Drop stack traces and the exporter's copy of its own graph: they hold paths of this machine."""
    for key in (GRAPH_SIGNATURE, RANGE_CONSTRAINTS, STACK_TRACE):
        model.graph.metadata_props.pop(key, None)
        model.metadata_props.pop(key, None)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.pop(STACK_TRACE, None)
    for function in model.functions.values():
        for node in function:
            node.metadata_props.pop(STACK_TRACE, None)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of the graph and its sub-graphs, once."""
    seen: set[int] = set()

    def fresh(values: Sequence[ir.Value]) -> Iterator[ir.Value]:
        for value in values:
            if id(value) not in seen:
                seen.add(id(value))
                yield value

    yield from fresh(tuple(graph.inputs))
    yield from fresh(tuple(graph.initializers.values()))
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from fresh(node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = attribute.as_graph()
                yield from fresh(tuple(inner.inputs))
                yield from fresh(tuple(inner.initializers.values()))


def _free(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _give_outputs_their_own_value(graph: ir.Graph) -> None:
    seen: set[int] = set()
    for index, value in enumerate(tuple(graph.outputs)):
        if value.producer() is not None and id(value) not in seen:
            seen.add(id(value))
            continue
        node = ir.node("Identity", [value])
        copy = node.outputs[0]
        copy.shape, copy.type = value.shape, value.type
        copy.name = f"{value.name}_copy"
        graph.append(node)
        graph.outputs[index] = copy
        seen.add(id(copy))


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a name of its own."""
    taken: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        name = node.name or f"node_{node.op_type}"
        if name in taken:
            name = _free(name, taken)
        node.name = name
        taken.add(name)
