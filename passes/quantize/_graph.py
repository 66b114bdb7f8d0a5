"""Putting quantized weights into the graph: new initializers and nodes, old ones removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from passes import names
from passes.qdq import Editor
from passes.quantize._weights import Weight


def taken_names(model: ir.Model) -> set[str]:
    """Every value and node name in the model's graphs, so that new ones can keep clear of them."""
    taken: set[str] = set()
    for graph in model.graphs():
        taken.update(graph.initializers)
        taken.update(value.name for value in graph.inputs if value.name)
        for node in graph:
            taken.update(value.name for value in node.outputs if value.name)
            if node.name:
                taken.add(node.name)
    return taken


def free_name(taken: set[str], wanted: str) -> str:
    """`wanted`, or `wanted_2`, `wanted_3` … where it is taken; the result counts as taken from now on."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def owning_graph(value: ir.Value) -> ir.Graph:
    """The graph that holds a constant: its initializer's graph, or its Constant node's."""
    graph = value.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"'{value.name}' belongs to no graph")
    return graph


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register `tensor` under `name` in `graph`."""
    tensor.name = name
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def insert_early(graph: ir.Graph, nodes: Sequence[ir.Node], readers: Sequence[ir.Node]) -> None:
    """Insert nodes whose inputs are all constants ahead of their readers.

    A single reader in the same graph gets them right before it; several, or readers inside sub-graphs, would
    need a search for the first one, so the nodes go to the front of the graph.
    """
    alone = len(readers) == 1 and readers[0].graph is graph
    graph.insert_before(readers[0] if alone else graph[0], list(nodes))


def insert_behind(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    """Insert a node that reads `value` ahead of whatever else in `graph` reads it, now or later."""
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, [node])
    else:
        graph.insert_before(graph[0], [node])


def insert_weight_nodes(
    editor: Editor,
    weight: Weight,
    tensors: Mapping[str, ir.TensorProtocol],
    build: Callable[[Mapping[str, ir.Value]], Sequence[ir.Node]],
) -> None:
    """Register a weight's new tensors and let its uses read what `build`'s nodes make of them.

    Args:
        editor: Names; not shared with a pass that names things otherwise at the same time.
        weight: The weight that is replaced.
        tensors: New tensors by part; a part's initializer is called `<weight>.<part>`.
        build: Given the parts' values, returns nodes in order; the last one's first output is the weight.
    """
    graph = owning_graph(weight.value)
    held = {
        part: add_initializer(graph, editor.fresh(f"{weight.name}.{part}"), tensor)
        for part, tensor in tensors.items()
    }
    nodes = list(build(held))
    for node in nodes:
        node.name = editor.fresh(f"{weight.name}/{node.op_type}")
        for output in node.outputs:
            output.name = editor.fresh(f"{weight.name}.{node.op_type.lower()}")
    result = nodes[-1].outputs[0]
    result.type, result.shape = ir.TensorType(weight.tensor.dtype), ir.Shape(weight.shape)
    if any(node.domain for node in nodes):
        graph.opset_imports.setdefault(next(node.domain for node in nodes if node.domain), 1)
    replace_weight(weight, graph, nodes, result)


def replace_weight(weight: Weight, graph: ir.Graph, nodes: Sequence[ir.Node], replacement: ir.Value) -> None:
    """Let every use of a weight read `replacement`, an output of `nodes`, instead; drop the weight."""
    readers = list(dict.fromkeys(use.through or use.node for use in weight.uses))
    insert_early(graph, nodes, readers)
    for node in nodes:
        names.carry_module(weight.uses[0].node, node)
    for reader in readers:
        for index, value in enumerate(reader.inputs):
            if value is weight.value:
                reader.replace_input_with(index, replacement)
    remove_if_unused(weight.value)


def remove_if_unused(value: ir.Value) -> None:
    """Remove an initializer, or a Constant or Transpose node's output, that nothing reads any more."""
    if value.uses() or value.is_graph_output():
        return
    producer = value.producer()
    if producer is None:
        graph = value.graph
        if (
            graph is not None
            and value.name is not None
            and value.name in graph.initializers
            and not value.is_graph_input()
        ):
            del graph.initializers[value.name]
        return
    sources = [source for source in producer.inputs if source is not None]
    if producer.graph is not None:
        producer.graph.remove(producer, safe=True)
    for source in sources:
        remove_if_unused(source)
