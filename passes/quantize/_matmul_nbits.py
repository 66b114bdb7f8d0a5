"""ONNX Runtime's own matrix product with weights in few bits, `com.microsoft.MatMulNBits`.

Inputs: A, B `(N, blocks, block · bits / 8)` uint8, scales `(N, blocks)`, zero points `(N, ceil(blocks / 2))` uint8,
group index (unused), bias `(N,)`. Source: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from passes import names
from passes.quantize._graph import remove_if_unused
from passes.quantize._weights import Use, Weight
from passes.target import Target

DOMAIN = "com.microsoft"


def level_for(weight: Weight, wanted: int, target: Target) -> int:
    """The accuracy level that a weight's products take where `wanted` is asked for.

    With int8 activations (4) ONNX Runtime 1.32's CPU kernel needs constant scales: it is wrong, by as much as the
    result, where they come from a node. In FP16 they do, since the runtime computes single FP16 nodes in FP32 and
    puts a Cast on their inputs, which only its last level of graph optimisation folds. Level 1 computes in float32.
    """
    in_fp16 = weight.tensor.dtype == ir.DataType.FLOAT16
    return 1 if wanted == 4 and in_fp16 and target.device == "cpu" else wanted


IN_FLOATS = (
    "MatMulNBits computes in float32 here (accuracy_level 1): with int8 activations ONNX Runtime's CPU is wrong on "
    "FP16 models. Leave out cast.fp16 for the faster kernel."
)
"""The note where `level_for` takes another level than asked for."""


def reason_against(weight: Weight) -> str | None:
    """Why this weight's products cannot become MatMulNBits (the standard form serves then), or None."""
    if len(weight.shape) != 2:
        return f"MatMulNBits takes weights of 2 dimensions, this one has {len(weight.shape)}"
    if weight.tensor.dtype == ir.DataType.BFLOAT16:
        return "ONNX Runtime's CPU has no bfloat16 MatMulNBits"
    for use in weight.uses:
        reason = _reason_against_node(use.node, weight.shape[weight.channel_axis])
        if reason:
            return reason
    return None


def _reason_against_node(node: ir.Node, channels: int) -> str | None:
    if node.op_type != "Gemm":
        return None
    for name, needed in (("alpha", 1.0), ("beta", 1.0), ("transA", 0.0)):
        attribute = node.attributes.get(name)
        if attribute is not None and float(attribute.value) != needed:
            return f"Gemm has {name} = {attribute.value}, MatMulNBits needs {needed:g}"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (bias.shape is None or list(bias.shape) != [channels]):
        return f"Gemm's bias has shape {bias.shape}, MatMulNBits needs [{channels}]"
    return None


def replace_products(
    weight: Weight,
    parts: Sequence[ir.Value | None],
    *,
    block_size: int,
    accuracy_level: int,
    bits: int = 4,
    bias_apart: bool = False,
) -> None:
    """Turn every product of `weight` into a MatMulNBits node that reads `parts`.

    Args:
        weight: The weight; removed once nothing reads it.
        parts: Codes, scales and zero points (None: symmetric).
        block_size: Elements per scale.
        accuracy_level: What the kernel computes in: 1 float32, 2 float16, 3 bfloat16, 4 int8, 0 its choice.
        bits: Of one element, 4 or 8.
        bias_apart: Whether a bias becomes an Add of its own, for engines whose layer takes none.
    """
    for use in weight.uses:
        _replace(use, parts, weight, block_size, accuracy_level, bits, bias_apart)
    for use in weight.uses:
        if use.through is not None and use.through.graph is not None:
            remove_if_unused(use.through.outputs[0])
    remove_if_unused(weight.value)


def _replace(
    use: Use,
    parts: Sequence[ir.Value | None],
    weight: Weight,
    block_size: int,
    accuracy_level: int,
    bits: int,
    bias_apart: bool,
) -> None:
    node = use.node
    inputs: list[ir.Value | None] = [node.inputs[0], *parts]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not bias_apart:
        inputs += [None] * (5 - len(inputs)) + [bias]
    while inputs[-1] is None:
        inputs.pop()
    output = node.outputs[0]
    product = ir.node(
        "MatMulNBits",
        inputs,
        {
            "K": weight.summed,
            "N": weight.shape[weight.channel_axis],
            "bits": bits,
            "block_size": block_size,
            "accuracy_level": accuracy_level,
        },
        domain=DOMAIN,
        name=node.name,
    )
    names.carry_module(node, product)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    made = [product]
    if bias is not None and bias_apart:
        made.append(ir.node("Add", [product.outputs[0], bias]))
        names.carry_module(node, made[-1])
        product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], made[-1].outputs)
