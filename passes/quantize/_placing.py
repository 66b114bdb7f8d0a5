"""Layers as standard Q/DQ: what TensorRT reads, and what ONNX Runtime turns into integer convolutions.

Before: y = Conv(x, w, b)                                        (or MatMul, Gemm)
After:  y = Conv(DequantizeLinear(QuantizeLinear(x, s, z), s, z), DequantizeLinear(w_int8, w_scale), b)

The weight is stored as int8 with one scale per output channel; the activation has one scale. TensorRT takes
zero points of zero only (developer guide, "Working with Quantized Types"), ONNX Runtime's CPU is fastest with
uint8 activations. Scales have the type that the layer computes in, so the graph stays strongly typed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.layers import Layer
from passes.qdq import Editor, fake_quantize, insert_after_source, stored_weight
from passes.quantize._channel_weights import ChannelWeight
from passes.quantize._pairs import pair_behind, pair_on
from passes.quantize._results import quantize_result
from passes.quantize._slots import Slot, slot

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Activation:
    """A static quantizer of an activation.

    Attributes:
        scale: One step in real units.
        zero_point: The stored value that means 0.
        signed: int8 (with zero point 0) or uint8.
    """

    scale: float
    zero_point: int
    signed: bool

    def apply(self, x: Array) -> Array:
        """`x` as the engine sees it after quantizing and dequantizing, float32."""
        low, high = (-128, 127) if self.signed else (0, 255)
        steps = np.clip(np.rint(x / np.float32(self.scale)) + self.zero_point, low, high)
        back: Array = ((steps - self.zero_point) * np.float32(self.scale)).astype(np.float32)
        return back


def smoothed(editor: Editor, layer: Layer, divisor: Array | None) -> ir.Value:
    """The layer's activation divided by (in,) factors, one Mul for all layers that share both."""
    if divisor is None:
        return layer.activation
    source = layer.activation
    kind = (source.dtype or layer.weight.dtype).numpy()

    def make() -> ir.Value:
        stem = source.name or "activation"
        factors = editor.constant(f"{stem}_smoothing", (1 / divisor).astype(kind))
        node = editor.node("Mul", [source, factors], [f"{stem}_smoothed"], like=layer.node)
        node.outputs[0].type, node.outputs[0].shape = source.type, source.shape
        insert_after_source(source, layer.graph, [node])
        return node.outputs[0]

    made: ir.Value = editor.shared(("smoothed", id(source), id(layer.graph), divisor.tobytes()), make)
    return made


def replace_bias(editor: Editor, layer: Layer, bias: Array) -> None:
    """Put new numbers in the place of a layer's bias, or give it one."""
    value = editor.constant(f"{layer.weight.name}_bias", bias.astype(layer.weight.dtype.numpy()))
    if layer.bias_node is not None:
        position = 1 if layer.bias_node.inputs[0] is layer.node.outputs[0] else 0
        layer.bias_node.replace_input_with(position, value)
        return
    if len(layer.node.inputs) > 2:
        layer.node.replace_input_with(2, value)
        return
    old = layer.node.outputs[0]
    if layer.node.op_type == "MatMul":
        add = editor.node("Add", [old, value], [f"{old.name}_corrected"], like=layer.node)
        layer.graph.insert_after(layer.node, add)
        new = add.outputs[0]
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=old.is_graph_output())
        add.replace_input_with(0, old)
        name, old.name = old.name, new.name  # what others know the layer's result by
        new.name = name
        return
    layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, value)


def place_activation(editor: Editor, where: Slot, activation: Activation, kind: ir.DataType) -> None:
    """Put Q/DQ on one input of a node, unless an earlier step's pair gives the value or reads it.

    Where only operators that move values lie behind such a pair, its scale is repeated: the same numbers.

    Args:
        editor: Names and sharing.
        where: The input.
        activation: Its quantizer.
        kind: What the node computes in.
    """
    source, graph = where.value, where.node.graph
    assert isinstance(graph, ir.Graph)
    behind = pair_behind(source, signed=activation.signed)
    if behind is not None and not behind[1]:
        return
    beside = None if behind else pair_on(source, graph, signed=activation.signed)
    if beside is not None:
        where.node.replace_input_with(where.index, beside.result)
        return
    if behind is not None:
        scale, zero = behind[0].scale, behind[0].zero_point
    else:
        scale, zero = _constants(editor, source, activation, kind)
    where.node.replace_input_with(where.index, fake_quantize(editor, source, graph, scale, zero, None))


def place_result(editor: Editor, result: ir.Value, activation: Activation, kind: ir.DataType) -> None:
    """Put Q/DQ behind what a node gives, for all that reads it.

    Args:
        editor: Names and sharing.
        result: The node's result.
        activation: Its quantizer.
        kind: What the node computes in.
    """
    quantize_result(editor, result, *_constants(editor, result, activation, kind))


def _factors_behind(editor: Editor, layer: Layer, weight: ChannelWeight) -> Array:
    """Multiply a layer's product by each channel's part of a common scale, which is returned, shape ().

    It lies in the middle of the channels' (geometrically), so that no product grows or shrinks more than it must.
    """
    node, graph, old = layer.node, layer.graph, layer.node.outputs[0]
    scales = weight.scale
    if weight.zero_channels:  # whose scale is 1 and means nothing
        filled = np.any(weight.quantized.numpy(), axis=1 - weight.axis)
        scales = np.where(filled, scales, scales[filled].max())
    kind = layer.weight.dtype.numpy()
    common = np.sqrt(np.float32(scales.max()) * np.float32(scales.min())).astype(kind).astype(np.float32)
    factors = editor.constant(f"{layer.weight.name}_factors", (scales / common).astype(kind))
    behind = [editor.node("Mul", [old, factors], [f"{old.name}_scaled"], like=node)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:  # a Gemm's bias comes after the factors
        bias = node.inputs[2]
        node.resize_inputs(2)
        behind.append(editor.node("Add", [behind[0].outputs[0], bias], [f"{old.name}_biased"], like=node))
    graph.insert_after(node, behind)
    new = behind[-1].outputs[0]
    for made in behind:
        made.outputs[0].type, made.outputs[0].shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=old.is_graph_output())
    behind[0].replace_input_with(0, old)
    name, old.name = old.name, new.name  # what others know the layer's result by
    new.name = name
    scale: Array = np.asarray(common)
    return scale


def _constants(
    editor: Editor, value: ir.Value, activation: Activation, kind: ir.DataType
) -> tuple[ir.Value, ir.Value]:
    """(scale, zero point) of the value's quantizer."""
    stored_type = np.int8 if activation.signed else np.uint8
    scale = editor.constant(f"{value.name}_scale", np.asarray(activation.scale, kind.numpy()))
    return scale, editor.constant(f"{value.name}_zero_point", np.asarray(activation.zero_point, stored_type))


def place(
    editor: Editor,
    layer: Layer,
    weight: ChannelWeight,
    activation: Activation,
    divisor: Array | None,
    *,
    factors_behind: bool = False,
) -> None:
    """Put Q/DQ around a layer's activation and store its weight as int8.

    Args:
        editor: Names and sharing.
        layer: The layer.
        weight: Its quantized weight.
        activation: Its activation's quantizer.
        divisor: (in,) factors that the activation is divided by first, or None.
        factors_behind: Give the weight one scale and multiply the result by each channel's part of it: the same
            codes, with sums that are scaled before they are stored.
    """
    kind = layer.weight.dtype.numpy()
    layer.node.replace_input_with(0, smoothed(editor, layer, divisor))
    place_activation(editor, slot(layer.node, 0), activation, layer.weight.dtype)
    stem = layer.weight.name or layer.node.name or "weight"
    scale = _factors_behind(editor, layer, weight) if factors_behind else weight.scale
    axis = None if factors_behind else weight.axis
    weight_scale = editor.constant(f"{stem}_scale", scale.astype(kind))
    shared = (
        "qdq weight",
        id(weight.quantized),
        weight.scale.tobytes(),
        None if divisor is None else divisor.tobytes(),
    )
    stored = editor.shared(shared, lambda: editor.tensor(f"{stem}_int8", weight.quantized))
    layer.node.replace_input_with(
        1, stored_weight(editor, stem, stored, weight_scale, None, axis, before=layer.node)
    )
    if layer.transposed:
        layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)
