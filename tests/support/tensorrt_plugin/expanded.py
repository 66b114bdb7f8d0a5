"""A model as the built-in plugin's dense layers read it, back in standard operators."""

from __future__ import annotations

import struct

import numpy as np
import onnx
from onnx import helper, numpy_helper

from optimize.engines.tensorrt_dense_choice import NORM, REST, STORED, Form


def expanded(lowered: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every MatMulNBits by what its layer computes; weights must be in the model."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(array: np.ndarray) -> str:
        name = f"expanded_{len(lowered.graph.initializer)}"
        lowered.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(operator: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"expanded_value_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    for node in lowered.graph.node:
        if node.op_type != "MatMulNBits":
            nodes.append(node)
            continue
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        x, half = node.input[0], held[node.input[2]]
        if numbers["block_size"] == REST:
            number = struct.unpack("<f", struct.pack("<i", numbers["K"]))[0]
            if numbers["accuracy_level"] == NORM:
                y = op("LayerNormalization", x, constant(half[0]), constant(half[1]), epsilon=number)
            else:
                nodes.append(
                    helper.make_node("Split", [x], [f"{x}_{part}" for part in "qkv"], axis=-1, num_outputs=3)
                )
                heads = {"q_num_heads": len(half), "kv_num_heads": len(half)}
                y = op("Attention", *(f"{x}_{part}" for part in "qkv"), scale=number, **heads)
        else:
            k, n, form = numbers["K"], numbers["N"], Form(numbers["accuracy_level"])
            flat = held[node.input[1]].reshape(-1).view(np.float16)
            w = flat.reshape(n, k).T if STORED[numbers["block_size"]] else flat.reshape(k, n)
            y = op("Add", op("MatMul", x, constant(w)), constant(half.reshape(-1)))
            if form in (Form.GELU_TANH, Form.GELU_ERF):
                y = op("Gelu", y, approximate="tanh" if form is Form.GELU_TANH else "none")
            if len(node.input) > 3:
                y = op("Add", y, node.input[3])
        nodes.append(helper.make_node("Identity", [y], [node.output[0]]))
    del lowered.graph.node[:], lowered.graph.value_info[:]
    lowered.graph.node.extend(nodes)
    return lowered
