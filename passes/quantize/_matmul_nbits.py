"""ONNX Runtime's own matrix product with weights in few bits, `com.microsoft.MatMulNBits`.

Inputs: A, B `(N, blocks, block · bits / 8)` uint8, scales `(N, blocks)`, zero points `(N, ceil(blocks / 2))` uint8,
group index (unused), bias `(N,)`. Source: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from passes import names
from passes.quantize._graph import free_name, insert_behind, remove_if_unused
from passes.quantize._weights import Use, Weight
from passes.target import Target

DOMAIN = "com.microsoft"


IN_FLOATS = (
    "FP16 products with int8 activations (accuracy_level 4) are written in float32 between casts, scales included: "
    "ONNX Runtime's CPU kernel is wrong where scales come from a node, as they may in FP16."
)
"""The note where `needs_floats`."""


def needs_floats(weight: Weight, accuracy_level: int, target: Target) -> bool:
    """Whether a weight's products must be written in float32.

    With int8 activations (level 4) ONNX Runtime 1.32's CPU kernel is wrong, by as much as the result, where scales
    are not constant. In FP16 they may not be: next to FP16 nodes that it has no kernel for, the runtime computes in
    float32 and puts a Cast on the scales, which only its last level of graph optimisation folds. Levels 0 to 3 are
    right there; on AVX2 one row takes 4 times as long with 4 bits, 20 times with 8.
    """
    in_fp16 = weight.tensor.dtype == ir.DataType.FLOAT16
    runs_there = target.device == "cpu" and target.dialect == "onnxruntime"
    return accuracy_level == 4 and in_fp16 and runs_there


def with_float_scales(tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, ir.TensorProtocol]:
    """A weight's parts with `scales` in float32, evaluated when they are written."""
    scales = tensors["scales"]
    wide = ir.LazyTensor(
        lambda: ir.Tensor(scales.numpy().astype(np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(scales.shape.numpy()),
    )
    return {**tensors, "scales": wide}


class Floats:
    """Float32 forms of FP16 values, each made once in a graph.

    Args:
        taken: Names in use; new ones are added.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._made: dict[tuple[ir.Graph, ir.Value], ir.Value] = {}

    def of(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """`value` in float32, for nodes of `reader`'s graph."""
        graph = reader.graph
        assert isinstance(graph, ir.Graph)
        if (graph, value) not in self._made:
            cast = self.cast(value, ir.DataType.FLOAT, reader)
            insert_behind(graph, value, cast)
            self._made[graph, value] = cast.outputs[0]
        return self._made[graph, value]

    def cast(self, value: ir.Value, dtype: ir.DataType, like: ir.Node) -> ir.Node:
        """A Cast of `value` that no graph holds yet."""
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=free_name(self._taken, f"{value.name}/Cast"))
        result = node.outputs[0]
        result.name = free_name(self._taken, f"{value.name}.{dtype.name.lower()}")
        result.type, result.shape = ir.TensorType(dtype), value.shape
        names.carry_module(like, node)
        return node

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        return free_name(self._taken, wanted)


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
    floats: Floats | None = None,
) -> None:
    """Turn every product of `weight` into a MatMulNBits node that reads `parts`.

    Args:
        weight: The weight; removed once nothing reads it.
        parts: Codes, scales and zero points (None: symmetric).
        block_size: Elements per scale.
        accuracy_level: What the kernel computes in: 1 float32, 2 float16, 3 bfloat16, 4 int8, 0 its choice.
        bits: Of one element, 4 or 8.
        bias_apart: Whether a bias becomes an Add of its own, for engines whose layer takes none.
        floats: Given where `needs_floats`; the scales among `parts` are float32 then.
    """
    for use in weight.uses:
        _replace(use, parts, weight, block_size, accuracy_level, bits, bias_apart, floats)
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
    floats: Floats | None,
) -> None:
    node = use.node
    data = node.inputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert data is not None
    if floats is not None:
        data, bias = floats.of(data, node), None if bias is None else floats.of(bias, node)
    inputs: list[ir.Value | None] = [data, *parts]
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
    if floats is not None:
        whole = product.outputs[0]
        whole.name, whole.shape = floats.name(f"{output.name}.float"), output.shape
        whole.type = ir.TensorType(ir.DataType.FLOAT)
        made.append(floats.cast(whole, ir.DataType.FLOAT16, node))
    if bias is not None and bias_apart:
        made.append(ir.node("Add", [product.outputs[0], bias]))
        names.carry_module(node, made[-1])
        product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], made[-1].outputs)
