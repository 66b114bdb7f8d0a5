"""Products of 8 bits that a processor sums in saturating 16 bits, and how ONNX Runtime computes them exactly.

x86 processors without VNNI multiply pairs of uint8 and int8 into int16 (vpmaddubsw), where 2 · 255 · 127 does not
fit: on such a processor plain ONNX Runtime 1.32 is off by a third and more, without a word. With the session entry
`session.x64quantprecision` it turns int8 weights beyond ±64 into uint8, from graph optimisation "extended" on. It
does so on processors with VNNI and AMX too, which are exact without and four times as fast: the entry is for
processors that saturate alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    import onnx

EXACT = {"session.x64quantprecision": "1"}
"""Session configuration under which such products are exact where they saturate without it."""

_INTEGER_OPS = frozenset(
    (
        "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QLinearConv", "QGemm",
        "QAttention", "DynamicQuantizeLSTM",
    )
)  # fmt: skip
"""Whose stored int8 weights ONNX Runtime turns into uint8."""


@functools.cache
def saturates() -> bool:
    """Whether uint8 · int8 products saturate on this machine's CPU, by trying it."""
    import onnx

    info = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [info("x", onnx.TensorProto.UINT8, [1, 64])],
        [info("y", onnx.TensorProto.INT32, [1, 16])],
        [weight],
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, 64), 255, np.uint8)})[0]
    return bool(np.any(found != 64 * 255 * 127))


def exact_products() -> dict[str, str]:
    """The session configuration that makes products of 8 bits exact on this machine's CPU; empty where they are."""
    return EXACT if saturates() else {}


def runs_wrong_as_written(model: Path | bytes | onnx.ModelProto) -> bool:
    """Whether the graph's own integer operators would saturate here if it is run without graph optimisation.

    Standard QuantizeLinear and DequantizeLinear are no such operators: as written they compute in floats. False for
    what is no model; opening it says so.
    """
    if not saturates():
        return False
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if isinstance(model, Path):
            model = onnx.load(model, load_external_data=False)
        elif isinstance(model, bytes):
            model = onnx.ModelProto.FromString(model)
    except (OSError, DecodeError):
        return False
    return any(node.op_type in _INTEGER_OPS for node in _nodes(model))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, of sub-graphs and functions too."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                waiting += [graph.node for graph in (attribute.g, *attribute.graphs) if graph.node]
