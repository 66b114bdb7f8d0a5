"""Adding constants and nodes to a graph, and putting QuantizeLinear/DequantizeLinear around a value.

`Editor` keeps names unique and shares what is equal: two layers that read one activation share its quantized
form, two uses of one weight share its quantized tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.names import carry_module

Array = np.ndarray[Any, np.dtype[Any]]


class Editor:
    """Adds to one model under unique names. Nothing here removes; see `drop_unused_constants`."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._names: set[str] = set()
        self._shared: dict[object, Any] = {}
        for graph in model.graphs():
            self._names.update(value.name or "" for value in graph.inputs)
            self._names.update(graph.initializers)
            for node in graph:
                self._names.add(node.name or "")
                self._names.update(output.name or "" for output in node.outputs)

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_2`, `stem_3` and so on, whichever no value or node has yet."""
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def constant(self, name: str, array: Array | np.generic) -> ir.Value:
        """A new initializer of the main graph; small equal ones are shared."""
        held = np.asarray(array)
        if held.size > 16:
            return self.tensor(name, ir.tensor(held))
        key = ("constant", held.dtype.str, held.shape, held.tobytes())
        made: ir.Value = self.shared(key, lambda: self.tensor(name, ir.tensor(held)))
        return made

    def tensor(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer of the main graph (which its sub-graphs may read too)."""
        name = self.fresh(name)
        tensor.name = name
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value

    def shared(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time for this key."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        like: ir.Node | None = None,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Node:
        """A new node, not yet in a graph, with outputs called `names` and the notes of `like`."""
        outputs = [ir.Value(name=self.fresh(name)) for name in names]
        node = ir.node(
            op_type,
            list(inputs),
            attributes=dict(attributes or {}),
            domain=domain,
            outputs=outputs,
            name=self.fresh(f"{names[0]}/{op_type}"),
        )
        if like is not None:
            carry_module(like, node)
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        return node


def insert_after_source(value: ir.Value, graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes that read `value` right behind what makes it, or first in `graph` when nothing there does.

    Args:
        value: What the nodes read.
        graph: The graph they go to, when `value` comes from outside of it or is an input.
        nodes: New nodes in running order.
    """
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, list(nodes))
    elif (first := next(iter(graph), None)) is not None:
        graph.insert_before(first, list(nodes))
    else:
        graph.extend(nodes)


def fake_quantize(
    editor: Editor, value: ir.Value, graph: ir.Graph, scale: ir.Value, zero_point: ir.Value, axis: int | None
) -> ir.Value:
    """`DequantizeLinear(QuantizeLinear(value))`, placed behind `value`'s source; shared per value and scale.

    Args:
        editor: Names and sharing.
        value: A floating-point activation.
        graph: The graph of its reader.
        scale: Scalar, or (channels,) along `axis`; its type is the type of the result.
        zero_point: Shaped like `scale`; its type is the stored type (int8, uint8, float8e4m3fn).
        axis: The channel axis, or None per tensor.

    Returns:
        The dequantized value; the caller decides who reads it.
    """

    def make() -> ir.Value:
        attributes = {} if axis is None else {"axis": axis}
        stem = value.name or "value"
        quantize = editor.node(
            "QuantizeLinear", [value, scale, zero_point], [f"{stem}_quantized"],
            like=value.producer(), attributes=attributes,
        )  # fmt: skip
        dequantize = editor.node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero_point], [f"{stem}_dequantized"],
            like=value.producer(), attributes=attributes,
        )  # fmt: skip
        quantize.outputs[0].type = ir.TensorType(zero_point.dtype or ir.DataType.INT8)
        quantize.outputs[0].shape = value.shape
        dequantize.outputs[0].type = value.type
        dequantize.outputs[0].shape = value.shape
        insert_after_source(value, graph, [quantize, dequantize])
        return dequantize.outputs[0]

    made: ir.Value = editor.shared(("fake", id(value), id(graph), id(scale), id(zero_point), axis), make)
    return made


def stored_weight(
    editor: Editor,
    name: str,
    stored: ir.Value,
    scale: ir.Value,
    zero_point: ir.Value | None,
    axis: int | None,
    *,
    before: ir.Node,
) -> ir.Value:
    """`DequantizeLinear` of a stored low-precision weight, placed in front of its reader.

    Args:
        editor: Names.
        name: Stem for the new value's name.
        stored: The stored elements, an initializer (`editor.tensor`).
        scale: Scalar, or (channels,) along `axis`; its type is the type of the result.
        zero_point: Shaped like `scale`, or None for zero.
        axis: The channel axis, or None per tensor.
        before: The reading node; the new node gets its notes.

    Returns:
        The dequantized weight.
    """
    node = editor.node(
        "DequantizeLinear", [stored, scale, *([zero_point] if zero_point is not None else [])],
        [f"{name}_dequantized"], like=before, attributes={} if axis is None else {"axis": axis},
    )  # fmt: skip
    node.outputs[0].type = ir.TensorType(scale.dtype or ir.DataType.FLOAT)
    node.outputs[0].shape = stored.shape
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(before, node)
    return node.outputs[0]


def drop_unused_constants(values: Sequence[ir.Value]) -> None:
    """Remove initializers, Constant nodes and their Transposes and Reshapes that lost their last reader."""
    queue = list(values)
    while queue:
        value = queue.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is None:
            graph = value.graph
            if isinstance(graph, ir.Graph) and value.name and value.name in graph.initializers:
                del graph.initializers[value.name]
            continue
        if any(output.uses() or output.is_graph_output() for output in producer.outputs):
            continue
        queue += [operand for operand in producer.inputs if operand is not None]
        if isinstance(producer.graph, ir.Graph):
            producer.graph.remove(producer, safe=True)
