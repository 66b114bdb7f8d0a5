"""Finding the layers that carry weights: MatMul, Gemm and Conv with a constant operand, and their bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from passes.base import Skip
from passes.names import label_of, module_of, name_of
from passes.weights import Constant, read

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One weighted layer.

    Attributes:
        node: The MatMul, Gemm or Conv.
        graph: The graph the node lives in (a sub-graph's own for a node inside If or Loop).
        weight: The constant operand as the operator multiplies it: (in, out) for MatMul and for Gemm whatever
            its transB, (out, in / groups, *kernel) for Conv.
        transposed: Whether `weight` is the stored operand transposed (Gemm with transB).
        channel_axis: Axis of `weight` that counts output channels.
        bias: 1-D constant bias of length out_channels, or None.
        bias_node: The Add that applies `bias` after a MatMul, or None (Gemm and Conv carry their own).
    """

    node: ir.Node
    graph: ir.Graph
    weight: Constant
    transposed: bool
    channel_axis: int
    bias: Constant | None
    bias_node: ir.Node | None

    @property
    def name(self) -> str:
        """What reports and recipes call the layer (`passes.names.label_of`)."""
        return label_of(self.node)

    @property
    def activation(self) -> ir.Value:
        """The node's data operand as it is now: a layer in front may have been replaced since."""
        value = self.node.inputs[0]
        assert value is not None  # `find` saw one
        return value

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.weight.shape[self.channel_axis]

    @property
    def output(self) -> ir.Value:
        """The layer's result, bias included."""
        return (self.bias_node or self.node).outputs[0]


def skip(node: ir.Node, reason: str) -> Skip:
    """A `Skip` for `node` that names its module."""
    return Skip(name_of(node), reason, module_of(node))


def find(model: ir.Model, ops: Iterable[str]) -> tuple[list[Layer], list[Skip]]:
    """Every layer of the given operator types, in graph order, sub-graphs included.

    Returns:
        The layers, and the nodes of those types that have no usable weight, each with its reason. A MatMul of
        two computed operands (attention) is named there too.
    """
    wanted = set(ops)
    layers: list[Layer] = []
    skips: list[Skip] = []
    for graph in model.graphs():
        for node in graph:
            if node.op_type not in wanted or node.domain not in ("", "ai.onnx"):
                continue
            found = _read_layer(node, graph)
            if isinstance(found, Layer):
                layers.append(found)
            else:
                skips.append(skip(node, found))
    for function in model.functions.values():
        for node in function:
            if node.op_type in wanted and node.domain in ("", "ai.onnx"):
                skips.append(skip(node, f"lies in local function '{function.name}'; inline functions first"))
    return layers, skips


def _read_layer(node: ir.Node, graph: ir.Graph) -> Layer | str:
    if len(node.inputs) < 2 or node.inputs[0] is None:
        return "has no data operand"
    weight = read(node.inputs[1])
    if isinstance(weight, str):
        return _with_swapped_hint(node, weight)
    if weight.dtype not in FLOATS:
        return f"weight '{weight.name}' holds {weight.dtype.name}, not floating point: already quantized"
    if 0 in weight.shape:
        return f"weight '{weight.name}' is empty (shape {list(weight.shape)})"
    data = read(node.inputs[0])
    if isinstance(data, Constant):
        return f"both operands are constants ('{data.name}', '{weight.name}'): fold them first"
    reader = {"MatMul": _read_matmul, "Gemm": _read_gemm, "Conv": _read_conv, "ConvTranspose": _read_conv}
    return reader[node.op_type](node, graph, weight)


def _with_swapped_hint(node: ir.Node, reason: str) -> str:
    left = read(node.inputs[0])
    if node.op_type == "MatMul" and isinstance(left, Constant):
        return f"the constant '{left.name}' is the left operand, a weight must be the right one"
    return reason


def _read_matmul(node: ir.Node, graph: ir.Graph, weight: Constant) -> Layer | str:
    if len(weight.shape) != 2:
        return f"weight '{weight.name}' has rank {len(weight.shape)} (shape {list(weight.shape)}), needs 2"
    bias, add = _bias_after(node, weight.shape[1])
    return Layer(node, graph, weight, False, 1, bias, add)


def _read_gemm(node: ir.Node, graph: ir.Graph, weight: Constant) -> Layer | str:
    attributes = node.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        return "Gemm with alpha or beta other than 1"
    if attributes.get_int("transA", 0):
        return "Gemm with a transposed data operand (transA=1)"
    transposed = bool(attributes.get_int("transB", 0))
    if transposed:
        order = (*weight.steps, ("Transpose", (1, 0)))
        weight = dataclasses.replace(weight, steps=order, shape=(weight.shape[1], weight.shape[0]))
    bias: Constant | None = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        constant = read(node.inputs[2])
        if isinstance(constant, str):
            return "Gemm's " + constant.replace("weight", "bias", 1)
        if constant.shape != (weight.shape[1],):
            return f"Gemm's bias has shape {list(constant.shape)}, needs [{weight.shape[1]}]"
        bias = constant
    return Layer(node, graph, weight, transposed, 1, bias, None)


def _read_conv(node: ir.Node, graph: ir.Graph, weight: Constant) -> Layer | str:
    transpose = node.op_type == "ConvTranspose"
    if transpose and node.attributes.get_int("group", 1) != 1:
        return "ConvTranspose with groups has no single axis of output channels"
    axis = 1 if transpose else 0
    bias: Constant | None = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        constant = read(node.inputs[2])
        if isinstance(constant, str):
            return constant.replace("weight", "bias", 1)
        bias = constant
    return Layer(node, graph, weight, False, axis, bias, None)


def _bias_after(node: ir.Node, channels: int) -> tuple[Constant | None, ir.Node | None]:
    """The Add of a constant with one number per column that is the MatMul's only reader, if there is one."""
    output = node.outputs[0]
    readers = tuple(output.uses())
    if output.is_graph_output() or len(readers) != 1:
        return None, None
    add, position = readers[0]
    if add.op_type != "Add" or add.domain not in ("", "ai.onnx") or add.graph is not node.graph:
        return None, None
    constant = read(add.inputs[1 - position])
    if isinstance(constant, str) or constant.shape[-1:] != (channels,) or set(constant.shape[:-1]) - {1}:
        return None, None
    if len(constant.shape) > 1:
        # A bias of a higher rank than the product would give its rank to the result.
        if output.shape is None or output.shape.rank() < len(constant.shape):
            return None, None
        steps = (*constant.steps, ("Reshape", (channels,)))
        constant = dataclasses.replace(constant, steps=steps, shape=(channels,))
    return constant, add
