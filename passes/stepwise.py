"""Running nodes one at a time, so that every value is rounded to its own type as the ONNX standard says.

An engine may keep more digits between operators than their types have: ONNX Runtime's CPU computes a float16
`MatMul`, `Add` and `Softmax` in float32 and drops the casts between them, even with graph optimisation off.
Where the rounding decides (scores of a row that a mask lowers throughout by -32752, where float16 steps by 16),
its plain graph then differs from the same operators run one by one, and from its own fused operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.base import Arrays, Runner

Array = np.ndarray[Any, np.dtype[Any]]

ROUNDED = ("float16", "bfloat16")
"""Types that engines widen between operators."""


def is_rounded(arrays: Mapping[str, Array]) -> bool:
    """Whether any of the arrays holds a type that an engine may compute with more digits than it has."""
    return any(array.dtype.name in ROUNDED for array in arrays.values())


def run_stepwise(
    nodes: Sequence[ir.Node],
    feeds: Arrays,
    weights: Sequence[ir.Value],
    model: ir.Model,
    run: Runner,
) -> dict[str, Array]:
    """Run `nodes` in order, each as a model of its own.

    Args:
        nodes: In running order; they read `feeds`, `weights` and each other.
        feeds: Arrays by value name.
        weights: Values with a constant behind them.
        model: Where the nodes come from: versions of operators, and functions.
        run: Runs one model.

    Returns:
        Every value by name: the feeds, the weights that were read, and what the nodes made.
    """
    known: dict[str, Array] = dict(feeds)
    constants = {str(value.name): value.const_value for value in weights}
    for node in nodes:
        for value in node.inputs:
            name = "" if value is None else str(value.name)
            tensor = constants.get(name)
            if name not in known and tensor is not None:
                known[name] = tensor.numpy()
        known.update(run(_alone(node, known, model), known))
    return known


def _alone(node: ir.Node, known: Arrays, model: ir.Model) -> ir.Model:
    """A model of one node, whose inputs have the types of the arrays that they will get."""
    inputs: dict[str, ir.Value] = {}
    for value in node.inputs:
        if value is not None and value.name not in inputs:
            array = known[str(value.name)]
            inputs[str(value.name)] = ir.Value(
                name=value.name,
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                shape=ir.Shape([None] * array.ndim),
            )
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else inputs[str(value.name)] for value in node.inputs],
        list(node.attributes.values()),
        overload=node.overload,
        num_outputs=len(node.outputs),
        name=node.name,
    )
    for ours, theirs in zip(copy.outputs, node.outputs, strict=True):
        ours.name, ours.type = theirs.name, theirs.type
    graph = ir.Graph(
        list(inputs.values()),
        [value for value in copy.outputs if value.name],
        nodes=[copy],
        opset_imports=dict(model.opset_imports),
        name="alone",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
