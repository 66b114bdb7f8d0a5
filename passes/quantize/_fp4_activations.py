"""Activations quantized to NVFP4 while the engine runs, as TensorRT's parser takes them.

Before: `y = MatMul(x, w)`
After: `q, s = TRT_FP4DynamicQuantize(x, g)`; `y = MatMul(DequantizeLinear(q, DequantizeLinear(s, g)), w)`

g is the tensor's scale from calibration, q E2M1 shaped like x, s E4M3, one per 16 elements of the last axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from passes import block_formats, calibration, numerics
from passes.base import PassContext, PassFailed, Skip
from passes.names import carry_module
from passes.qdq import Editor
from passes.quantize._float_parts import TRT_DOMAIN
from passes.quantize._weights import Weight

SCALE_TYPE_FP8 = 17
"""ONNX's number for FLOAT8E4M3FN, which the operator's `scale_type` expects."""


def calibrated_inputs(
    model: ir.Model, weights: Sequence[Weight], context: PassContext
) -> tuple[Mapping[str, float], list[Weight], list[Skip]]:
    """The largest magnitude of every input that the weights' products read.

    Returns:
        `(amax per value name, weights whose inputs all have one, the others' nodes with the reason)`.
    """
    names = list(
        dict.fromkeys(
            use.node.inputs[0].name
            for weight in weights
            for use in weight.uses
            if use.node.graph is model.graph and use.node.inputs[0] is not None and use.node.inputs[0].name
        )
    )
    if not names:
        raise PassFailed("fp4: activations: dynamic finds no layer whose input calibration can observe.")
    ranges = calibration.collect(model, names, context, calibration.Method(), numerics.FP4_E2M1, symmetric=True)
    known = {name: found.amax for name, found in ranges.of.items() if found.amax > 0}
    kept, skips = [], []
    for weight in weights:
        missing = [use for use in weight.uses if _input_name(use.node) not in known]
        if not missing:
            kept.append(weight)
            continue
        for use in weight.uses:
            name = _input_name(missing[0].node)
            why = ranges.unusable.get(name, "is all zero on the calibration data or lies in a sub-graph")
            skips.append(use.skip(f"its input '{name}' {why}"))
    return known, kept, skips


def quantize_input(editor: Editor, node: ir.Node, amax: Mapping[str, float]) -> None:
    """Let `node` read its first input through NVFP4; nodes that share an input share its quantized form."""
    source = node.inputs[0]
    assert source is not None
    name = source.name or ""
    graph = node.graph
    assert isinstance(graph, ir.Graph)

    def make() -> ir.Value:
        kind = source.dtype or ir.DataType.FLOAT
        scale = block_formats.nvfp4_global_scale(amax[name])
        held = editor.constant(f"{name}.global_scale", np.array(scale).astype(kind.numpy()))
        quantize = editor.node(
            "TRT_FP4DynamicQuantize", [source, held], [f"{name}.fp4", f"{name}.fp4_scales"],
            like=node, domain=TRT_DOMAIN,
            attributes={"axis": -1, "block_size": block_formats.NVFP4_BLOCK, "scale_type": SCALE_TYPE_FP8},
        )  # fmt: skip
        scales = editor.node("DequantizeLinear", [quantize.outputs[1], held], [f"{name}.steps"], like=node)
        values = editor.node(
            "DequantizeLinear", [quantize.outputs[0], scales.outputs[0]], [f"{name}.fp4_dequantized"],
            like=node, attributes={"axis": -1, "block_size": block_formats.NVFP4_BLOCK},
        )  # fmt: skip
        values.outputs[0].type, values.outputs[0].shape = source.type, source.shape
        graph.insert_before(node, [quantize, scales, values])
        carry_module(node, quantize, scales, values)
        return values.outputs[0]

    node.replace_input_with(0, editor.shared(("nvfp4", id(source), id(graph)), make))


def _input_name(node: ir.Node) -> str:
    source = node.inputs[0]
    return "" if source is None else source.name or ""
