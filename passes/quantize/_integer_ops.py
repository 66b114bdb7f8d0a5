"""Layers in ONNX Runtime's integer operators: the form its CPU runs fastest.

Before: y = MatMul(x, w) + b          (or Gemm, with transB or not)
After:  q, s, z = DynamicQuantizeLinear(x)                                   one for all layers that read x
        y = com.microsoft.MatMulIntegerToFloat(q, w_int8, s, w_scale, z, , b)

ONNX Runtime 1.32 fuses a DynamicQuantizeLinear with a single reader into DynamicQuantizeMatMul by itself. The
activation is uint8 on purpose: its kernel multiplies uint8 by int8 (a signed activation took 40 times as
long), and the weights keep to -127 … 127.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.layers import Layer
from passes.qdq import Editor, insert_after_source
from passes.quantize._channel_weights import ChannelWeight
from passes.quantize._pairs import pair_behind, quantizers_on, stored_scale
from passes.quantize._placing import Activation, Array, smoothed
from passes.weights import Constant

DOMAIN = "com.microsoft"


def refusal(layer: Layer) -> str | None:
    """Why a layer cannot take this form, or None."""
    if layer.node.op_type not in ("MatMul", "Gemm"):
        return f"ONNX Runtime has no fast dynamic integer {layer.node.op_type}; use activations: static"
    if layer.weight.dtype != ir.DataType.FLOAT:
        return f"computes in {layer.weight.dtype.name}; ONNX Runtime's integer matmul gives FLOAT"
    if layer.activation.dtype not in (None, ir.DataType.FLOAT):
        return f"its activation is {layer.activation.dtype.name}; ONNX Runtime's integer matmul takes FLOAT"
    return None


def replace_layer(
    editor: Editor,
    layer: Layer,
    weight: ChannelWeight,
    static: Activation | None,
    divisor: Array | None = None,
    bias: Array | None = None,
) -> ir.Node:
    """Put the integer form in a layer's place.

    Args:
        editor: Names and sharing.
        layer: A MatMul or Gemm that `refusal` let pass.
        weight: Its quantized weight, (in, out).
        static: The uint8 activation's quantizer, or None for dynamic.
        divisor: (in,) factors that the activation is divided by first, or None.
        bias: (out,) replacement for the layer's bias, or None to keep its own.

    Returns:
        The new node that computes the layer.
    """
    source = smoothed(editor, layer, divisor)
    known = _known(editor, source, layer.graph, static)
    if known is not None:
        quantized, scale, zero_point = known
    elif static is None:
        quantized, scale, zero_point = _dynamic(editor, source, layer.graph)
    else:
        quantized, scale, zero_point = _static(editor, source, layer.graph, static)
    stem = layer.weight.name or layer.node.name or "weight"
    shared = (
        "integer weight",
        layer.weight.key,
        weight.scale.tobytes(),
        None if divisor is None else divisor.tobytes(),
    )
    stored = editor.shared(shared, lambda: editor.tensor(f"{stem}_int8", weight.quantized))
    weight_scale = editor.constant(f"{stem}_scale", weight.scale)
    bias_value: ir.Value | None = None
    if bias is not None:
        bias_value = editor.constant(f"{stem}_bias", bias.astype(np.float32))
    elif layer.bias is not None:
        bias_value = _bias_value(editor, layer.bias)
    node = editor.node(
        "MatMulIntegerToFloat",
        [quantized, stored, scale, weight_scale, zero_point, None, *([bias_value] if bias_value else [])],
        [f"{layer.output.name}_int8"],
        like=layer.node,
        domain=DOMAIN,
    )
    _take_place(layer, node)
    return node


def _bias_value(editor: Editor, bias: Constant) -> ir.Value:
    if not bias.steps and bias.source.is_initializer():
        return bias.source
    made: ir.Value = editor.shared(("bias", bias.key), lambda: editor.constant(f"{bias.name}_bias", bias.numpy()))
    return made


def _take_place(layer: Layer, node: ir.Node) -> None:
    """Let `node` give the layer's result under the layer's name, and remove what it replaces."""
    old = layer.output
    new = node.outputs[0]
    new.type, new.shape = old.type, old.shape
    last = layer.bias_node or layer.node
    layer.graph.insert_before(last, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    kept = old.name
    old.name = f"{kept}_replaced"
    new.name = kept
    removed = [layer.bias_node, layer.node] if layer.bias_node is not None else [layer.node]
    for item in removed:
        if item is not None:
            layer.graph.remove(item, safe=True)


def _known(
    editor: Editor, value: ir.Value, graph: ir.Graph, static: Activation | None
) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(8-bit value, scale, zero point) by an earlier step's quantizer: nothing is rounded a second time.

    Either `value` comes from a pair, or a quantizer of the same kind, calibrated or dynamic, reads it already.
    """
    behind = pair_behind(value, signed=False)
    if behind is not None:
        pair, moved = behind
        stored = _quantized(editor, value, graph, pair.scale, pair.zero_point) if moved else pair.stored
        return stored, pair.scale, pair.zero_point
    if static is None:
        dynamic = next(quantizers_on(value, graph, "DynamicQuantizeLinear"), None)
        return None if dynamic is None else (dynamic.outputs[0], dynamic.outputs[1], dynamic.outputs[2])
    for quantize in quantizers_on(value, graph, "QuantizeLinear"):
        found = stored_scale(quantize, signed=False)
        if found is not None:
            return quantize.outputs[0], *found
    return None


def _dynamic(editor: Editor, value: ir.Value, graph: ir.Graph) -> tuple[ir.Value, ir.Value, ir.Value]:
    def make() -> tuple[ir.Value, ir.Value, ir.Value]:
        stem = value.name or "activation"
        node = editor.node(
            "DynamicQuantizeLinear", [value], [f"{stem}_uint8", f"{stem}_scale", f"{stem}_zero_point"],
            like=value.producer(),
        )  # fmt: skip
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.UINT8), value.shape
        node.outputs[1].type, node.outputs[1].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
        node.outputs[2].type, node.outputs[2].shape = ir.TensorType(ir.DataType.UINT8), ir.Shape(())
        insert_after_source(value, graph, [node])
        return node.outputs[0], node.outputs[1], node.outputs[2]

    made: tuple[ir.Value, ir.Value, ir.Value] = editor.shared(("dynamic", id(value), id(graph)), make)
    return made


def _static(
    editor: Editor, value: ir.Value, graph: ir.Graph, static: Activation
) -> tuple[ir.Value, ir.Value, ir.Value]:
    step = editor.constant(f"{value.name}_scale", np.asarray(static.scale, np.float32))
    zero = editor.constant(f"{value.name}_zero_point", np.asarray(static.zero_point, np.uint8))
    return _quantized(editor, value, graph, step, zero), step, zero


def _quantized(editor: Editor, value: ir.Value, graph: ir.Graph, step: ir.Value, zero: ir.Value) -> ir.Value:
    """`QuantizeLinear(value)` behind the value's source, one for all layers that read it with this scale."""

    def make() -> ir.Value:
        node = editor.node("QuantizeLinear", [value, step, zero], [f"{value.name}_uint8"], like=value.producer())
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.UINT8), value.shape
        insert_after_source(value, graph, [node])
        return node.outputs[0]

    made: ir.Value = editor.shared(("static", id(value), id(graph), id(step), id(zero)), make)
    return made
