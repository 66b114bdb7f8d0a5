"""What FP4 and TensorRT's own quantization operators compute, as folded weights and as standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes import block_formats, numerics
from passes.names import carry_module
from passes.qdq import Editor, drop_unused_constants

Array = npt.NDArray[Any]


def is_unsupported_weight(node: ir.Node) -> bool:
    """Whether `node` dequantizes something that ONNX Runtime's CPU provider cannot read."""
    if node.op_type == "TRT_MXFP8DequantizeLinear":
        return True
    codes = node.inputs[0] if node.inputs else None
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx") or codes is None:
        return False
    producer = codes.producer()
    computed = producer is not None and producer.op_type != "Constant"
    return codes.dtype == ir.DataType.FLOAT4E2M1 and not computed


def folded_weight(node: ir.Node) -> ir.LazyTensor | str:
    """The dequantized weight, computed when it is read, or why it cannot be."""
    codes = ir.convenience.get_const_tensor(node.inputs[0]) if node.inputs[0] is not None else None
    scales = _constant(node.inputs[1])
    if codes is None or scales is None:
        return "its elements or scales are not constants"
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    axis %= len(codes.shape)
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    kind = node.outputs[0].dtype or ir.DataType.FLOAT

    def compute() -> ir.TensorProtocol:
        step = scales()
        if node.op_type == "TRT_MXFP8DequantizeLinear":
            step = step.view(numerics.E8M0)
        step = step.astype(np.float32)
        if block:
            step = np.repeat(step, block, axis=axis)
        elif step.ndim == 1:
            step = step.reshape([-1 if i == axis else 1 for i in range(len(codes.shape))])
        return ir.Tensor(numerics.dequantize(codes.numpy(), step).astype(kind.numpy()), dtype=kind)

    return ir.LazyTensor(compute, dtype=kind, shape=ir.Shape(codes.shape.numpy()))


def _constant(value: ir.Value | None) -> Any:
    """A function that gives a constant's numbers, following DequantizeLinear and Cast of constants; or None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Cast":
        inner, kind = _constant(node.inputs[0]), ir.DataType(node.attributes["to"].as_int())
        return None if inner is None else lambda: inner().astype(kind.numpy())
    if node.op_type == "DequantizeLinear" and len(node.inputs) == 2:
        codes, scale = _constant(node.inputs[0]), _constant(node.inputs[1])
        if codes is None or scale is None:
            return None

        def compute() -> Array:
            step = scale()
            return numerics.dequantize(codes(), step).astype(step.dtype)

        return compute
    return None


def lower_dynamic(editor: Editor, node: ir.Node) -> str | None:
    """Replace `TRT_FP4DynamicQuantize` and its two DequantizeLinear by standard operators.

    Returns:
        None when done, or why not.
    """
    source, held = node.inputs[0], node.inputs[1]
    global_scale = None if held is None else ir.convenience.get_const_tensor(held)
    if source is None or global_scale is None:
        return "its tensor scale is not a constant"
    width = source.shape[-1] if source.shape is not None and len(source.shape) else None
    if not isinstance(width, int) or width % block_formats.NVFP4_BLOCK:
        return f"its input's last axis is {width}, needs a known multiple of {block_formats.NVFP4_BLOCK}"
    values = _chain_end(node)
    if values is None:
        return "its results do not go through DequantizeLinear alone"
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    made = _dynamic_nodes(editor, node, source, np.float32(global_scale.numpy()), width)
    graph.insert_before(node, made)
    for new in made:
        carry_module(node, new)
    result = made[-1].outputs[0]
    result.type, result.shape = values.outputs[0].type, values.outputs[0].shape
    ir.convenience.replace_all_uses_with(values.outputs[0], result)
    scales = values.inputs[1]
    assert scales is not None
    steps = scales.producer()
    assert steps is not None
    constants = [node.inputs[1], steps.inputs[1]]
    graph.remove([values, steps, node], safe=True)
    drop_unused_constants([value for value in constants if value is not None])
    return None


def _chain_end(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear that reads both results of the quantizer, nothing else doing so."""
    elements, scales = node.outputs
    if len(elements.uses()) != 1 or len(scales.uses()) != 1:
        return None
    values, steps = elements.consumers()[0], scales.consumers()[0]
    if values.op_type != "DequantizeLinear" or steps.op_type != "DequantizeLinear":
        return None
    if values.outputs[0].is_graph_output() or values.inputs[1] is not steps.outputs[0]:
        return None
    return values if len(steps.outputs[0].uses()) == 1 else None


def _dynamic_nodes(
    editor: Editor, node: ir.Node, source: ir.Value, global_scale: np.float32, width: int
) -> list[ir.Node]:
    """`block_formats.nvfp4_dynamic` in standard operators, each float32 rounding in the same place."""
    stem = source.name or "x"
    made: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        new = editor.node(op_type, inputs, [f"{stem}.simulated"], like=node, attributes=attributes)
        made.append(new)
        return new.outputs[0]

    def number(value: float) -> ir.Value:
        return editor.constant("simulated_constant", np.array(value, np.float32))

    def whole(*values: int) -> ir.Value:
        return editor.constant("simulated_shape", np.array(values, np.int64))

    shape = add("Shape", source)
    x = add("Cast", source, to=int(ir.DataType.FLOAT))
    blocks = add("Reshape", x, whole(-1, width // block_formats.NVFP4_BLOCK, block_formats.NVFP4_BLOCK))
    amax = add("ReduceMax", add("Abs", blocks), whole(-1), keepdims=1)
    scale = add("Div", add("Div", amax, number(numerics.FP4_E2M1.highest)), number(float(global_scale)))
    least = float(block_formats.LEAST_SCALE)
    clipped = add("Clip", scale, number(least), number(numerics.FP8_E4M3.highest))
    narrow = add("Cast", clipped, to=int(ir.DataType.FLOAT8E4M3FN))
    step = add("Mul", add("Cast", narrow, to=int(ir.DataType.FLOAT)), number(float(global_scale)))
    steps = add("Div", blocks, step)
    magnitude = add("Abs", steps)
    middle = add("Where", add("Less", magnitude, number(4)), number(1), number(2))
    spacing = add("Where", add("Less", magnitude, number(2)), number(0.5), middle)
    rounded = add("Mul", add("Round", add("Div", steps, spacing)), spacing)
    kept = add("Clip", rounded, number(-6), number(6))
    back = add("Reshape", add("Mul", kept, step), shape)
    add("Cast", back, to=int(source.dtype or ir.DataType.FLOAT))
    return made
