"""Counting what a graph is made of, without reading its weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx_ir as ir

from optimize.facts import ModelFacts


def of(model: ir.Model, size_bytes: int) -> ModelFacts:
    """Facts of a model; nodes and weights of sub-graphs and functions are counted too."""
    ops: Counter[str] = Counter()
    weight_bytes: Counter[str] = Counter()
    parameters = 0
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                parameters += value.const_value.size
                weight_bytes[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes.extend(function.all_nodes())
    for node in nodes:
        ops[operator_name(node)] += 1
    return ModelFacts(
        nodes=len(nodes),
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        parameters=parameters,
        weight_bytes=dict(sorted(weight_bytes.items())),
        size_bytes=size_bytes,
        opset=model.opset_imports.get("", 0),
        inputs=tuple(describe(value) for value in model.graph.inputs),
        outputs=tuple(describe(value) for value in model.graph.outputs),
    )


def operator_name(node: ir.Node) -> str:
    """`MatMul`, or `com.microsoft.MatMulNBits` outside the standard domain."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def describe(value: ir.Value) -> dict[str, Any]:
    """Name, data type and shape of an input or output, JSON-ready."""
    shape = None
    if value.shape is not None:
        shape = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return {"name": value.name, "dtype": value.dtype.name.lower() if value.dtype else None, "shape": shape}
