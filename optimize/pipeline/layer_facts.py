"""Which number formats each computing layer of a graph works in, read off types alone: no weight is loaded."""

from __future__ import annotations

import onnx_ir as ir

from optimize.facts import LayerFact
from optimize.pipeline.model_facts import operator_name
from passes.names import module_of

WEIGHTED = {
    "MatMul": 1,
    "Gemm": 1,
    "Conv": 1,
    "ConvTranspose": 1,
    "MatMulInteger": 1,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "QLinearConv": 3,
    "com.microsoft.MatMulNBits": 1,
    "com.microsoft.MatMulIntegerToFloat": 1,
    "com.microsoft.DynamicQuantizeMatMul": 1,
    "com.microsoft.QGemm": 3,
    "com.microsoft.FusedMatMul": 1,
    "com.microsoft.FusedGemm": 1,
    "com.microsoft.FusedConv": 1,
    "com.microsoft.QAttention": 1,
    "com.microsoft.Attention": 1,
    "Gather": 0,
}
"""Operators that have a weight, and which input it is. A Gather counts only when it looks up a weight."""

UNWEIGHTED = {"Attention", "com.microsoft.MultiHeadAttention", "com.microsoft.GroupQueryAttention"}
"""Operators that compute on activations alone and are worth a place on the map."""

CARRIERS = {"Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze"}
"""Operators a weight may pass on its way to its layer without becoming something else."""


def of(model: ir.Model) -> tuple[LayerFact, ...]:
    """The layers of a model in the order of its nodes, sub-graphs included."""
    return tuple(fact for node in model.graph.all_nodes() if (fact := _layer(node)) is not None)


def _layer(node: ir.Node) -> LayerFact | None:
    operator = operator_name(node)
    name = module_of(node) or node.name or ""
    activation_index = 1 if operator == "Gather" else 0
    if operator in UNWEIGHTED:
        return LayerFact(name=name, op_type=operator, activation=_activation(node, 0))
    index = WEIGHTED.get(operator)
    if index is None or index >= len(node.inputs):
        return None
    weight, parameters = _weight(node.inputs[index])
    if not weight and operator == "Gather":
        return None
    if operator == "com.microsoft.MatMulNBits":
        bits, block = (node.attributes.get_int(key, default) for key, default in (("bits", 4), ("block_size", 0)))
        weight = f"int{bits} ×{block}"
        parameters = node.attributes.get_int("K", 0) * node.attributes.get_int("N", 0)
    activation = "" if operator == "Gather" else _activation(node, activation_index)
    if operator == "com.microsoft.DynamicQuantizeMatMul":
        activation = "uint8"  # it quantizes its input itself
    return LayerFact(name=name, op_type=operator, weight=weight, activation=activation, parameters=parameters)


def _weight(value: ir.Value | None) -> tuple[str, int]:
    """Format and elements of a weight, ("", 0) when the input is no weight (two activations multiplied)."""
    block = ""
    for _ in range(8):
        if value is None:
            break
        if value.const_value is not None:
            return format_name(value.const_value.dtype) + block, value.const_value.size
        node = value.producer()
        if node is None or not (node.op_type in CARRIERS or node.op_type == "DequantizeLinear"):
            break
        size = node.attributes.get_int("block_size", 0) if node.op_type == "DequantizeLinear" else 0
        block = f" ×{size}" if size else block
        value = node.inputs[0]
    return "", 0


def _activation(node: ir.Node, index: int) -> str:
    value = node.inputs[index] if node.inputs else None
    for _ in range(4):
        if value is None:
            return ""
        producer = value.producer()
        if producer is None or producer.op_type not in {*CARRIERS, "DequantizeLinear"} - {"Cast"}:
            break
        value = producer.inputs[0]
        if producer.op_type == "DequantizeLinear":
            break
    if value is None:
        return ""
    if value.dtype is not None:
        return format_name(value.dtype)
    return _quantized_to(value.producer())


def _quantized_to(node: ir.Node | None) -> str:
    """The format a QuantizeLinear writes, when shape inference has not said so."""
    if node is None or node.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return ""
    if len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].dtype is not None:
        return format_name(node.inputs[2].dtype)
    chosen = node.attributes.get_int("output_dtype", 0)
    return format_name(ir.DataType(chosen)) if chosen else "uint8"


def format_name(dtype: ir.DataType) -> str:
    """The name a reader knows: "float32", "int8", "float8e4m3fn"."""
    return {"float": "float32", "double": "float64"}.get(dtype.name.lower(), dtype.name.lower())
