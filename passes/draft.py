"""A proposed rewrite: new nodes that are not yet in the graph, and the old values they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclasses.dataclass
class Draft:
    """One proposed rewrite: nodes not yet in the graph, and which old values they stand for.

    Attributes:
        pattern: The pattern's name.
        anchor: The old node that names the place (the softmax of an attention).
        nodes: New nodes, in running order.
        constants: New initializers.
        replacements: Old value → new value.
        least_opset: The standard opset that the new nodes need.
    """

    pattern: str
    anchor: ir.Node
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    constants: list[ir.Value] = dataclasses.field(default_factory=list)
    replacements: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    least_opset: int = 1
    shared: dict[tuple[str, str, tuple[int, ...], bytes], ir.Value] = dataclasses.field(default_factory=dict)

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and give that output."""
        return self.ops(op_type, inputs, 1, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs and give them."""
        node = ir.node(
            op_type,
            list(inputs),
            attributes={key: value for key, value in attributes.items() if value is not None},
            domain=domain,
            num_outputs=outputs,
        )
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: np.ndarray[Any, Any] | np.generic, name: str) -> ir.Value:
        """Add an initializer; drafts share equal small ones. Its name is made unique when it is kept."""
        array = np.asarray(array)
        key = (name, array.dtype.str, array.shape, array.tobytes() if array.size <= 64 else b"")
        if array.size <= 64 and key in self.shared:
            value = self.shared[key]
            if value not in self.constants:
                self.constants.append(value)
            return value
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.constants.append(value)
        if array.size <= 64:
            self.shared[key] = value
        return value

    def drop(self, value: ir.Value) -> None:
        """Take back a node made for this draft, by its output."""
        node = value.producer()
        if node is not None and node in self.nodes:
            self.nodes.remove(node)
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Say that `new` stands for `old`, with its type and shape."""
        if new.producer() in self.nodes:
            new.type, new.shape = old.type, old.shape
        self.replacements[old] = new

    def boundary(self) -> tuple[ir.Value, ...]:
        """Values of the old graph that the new nodes read."""
        own = {output for node in self.nodes for output in node.outputs} | set(self.constants)
        read = [value for node in self.nodes for value in node.inputs if value is not None]
        read += [value for value in self.replacements.values() if value not in own]
        return tuple(dict.fromkeys(value for value in read if value not in own))

    def withdraw(self) -> None:
        """Take the new nodes' hands off the old graph's values."""
        for node in self.nodes:
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)
