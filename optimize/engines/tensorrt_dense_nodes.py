"""How the parser is told of the built-in plugin's layers in 16 bits: nodes and constants that stand for them.

TensorRT for RTX's parser hands plugins nothing but operators that it knows. MatMulNBits takes bytes, a float16
constant and one more float16 value, and checks their ranks alone, so what a layer reads is put there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimize.engines.tensorrt_dense_choice import BITS
from optimize.engines.tensorrt_plugin_layer import NAME
from passes.names import carry_module

DOMAIN = "com.microsoft"
STANDARD = ("", "ai.onnx")


class Nodes:
    """Writes into one graph; every name is new there."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        made = (value.name for node in graph for value in node.outputs)
        self._taken = {*graph.initializers, *(value.name for value in graph.inputs), *made}
        self._numbers = itertools.count()
        self._retyped: dict[tuple[int, tuple[int, ...]], ir.Value] = {}
        self._no_bytes: ir.Value | None = None

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """An initializer."""
        name = self._name()
        tensor = ir.tensor(array, name=name)
        return self._hold(name, tensor, tensor.dtype, array.shape)

    def no_bytes(self) -> ir.Value:
        """What stands where a layer has no weights."""
        if self._no_bytes is None:
            self._no_bytes = self.constant(np.zeros((1, 1, 64), np.uint8))
        return self._no_bytes

    def retyped(self, value: ir.Value, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        """A constant's bytes under another type and shape; those outside the model stay where they are."""
        if (id(value), shape) in self._retyped:
            return self._retyped[id(value), shape]
        tensor: Any = value.const_value
        name = self._name()
        if isinstance(tensor, ir.ExternalTensor):
            made: Any = ir.ExternalTensor(
                tensor.location, tensor.offset, tensor.nbytes, dtype,
                shape=ir.Shape(shape), name=name, base_dir=tensor.base_dir,
            )  # fmt: skip
        else:
            array = np.ascontiguousarray(tensor.numpy())
            made = ir.tensor(array.view(dtype.numpy()).reshape(shape), name=name)
        held = self._hold(name, made, dtype, shape)
        self._retyped[id(value), shape] = held
        return held

    def stand_in(
        self, node: ir.Node, y: ir.Value, inputs: Sequence[ir.Value], numbers: Mapping[str, int], *before: ir.Node
    ) -> None:
        """Put a layer in the place of the nodes from `node` to the one that gives `y`, after the nodes `before`.

        The layer is called as TensorRT calls `node`, so that what is told of layers names it.
        """
        name = node.name or f"node_of_{node.outputs[0].name}"
        made = ir.node(NAME, inputs, {**numbers, "bits": BITS}, domain=DOMAIN, name=name)
        carry_module(node, made)
        last = y.producer()
        assert last is not None
        self._graph.insert_before(last, [*before, made])
        output = made.outputs[0]
        output.type, output.shape = y.type, y.shape
        called = y.name
        y.replace_all_uses_with(output, replace_graph_outputs=True)
        y.name, output.name = self._name(), called

    def _hold(self, name: str, tensor: Any, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        held = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        self._graph.initializers[name] = held
        return held

    def _name(self) -> str:
        names = map("builtin_plugin_{}".format, self._numbers)
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        return name
