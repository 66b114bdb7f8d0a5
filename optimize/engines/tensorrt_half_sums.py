"""Quantized layers in FP16 that TensorRT for RTX runs, and whose results it gets wrong.

With a scale per output channel a matrix product's sums are stored unscaled, as FP16, and scaled by the next kernel:
most are infinite on inputs without outliers. A convolution in FP8 is wrong the other way round, with one scale for
its whole weight. Both tried on an H200 with 1.6.1: docs/gpu/2026-11-29-scales.json.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from optimize.engines.tensorrt_library import Library

SHOWN = 5


def notes(library: Library, model: ir.Model) -> list[str]:
    """A sentence for each kind of layer that the library gets wrong; none for one that is not known to.

    Args:
        library: The one that builds.
        model: What it builds.
    """
    if not library.flavour.stores_unscaled_sums:
        return []
    said = []
    products = [node for node, several in _quantized(model, "MatMul", "Gemm") if several]
    if products:
        said.append(
            f"{library.title} stores sums of FP16 products unscaled where a quantized weight has a scale per "
            f"channel; they may overflow to infinity: {_named(products)}. Give such a weight one scale, or compute "
            "in FP32."
        )
    convolutions = [node for node, several in _quantized(model, "Conv") if not several]
    if convolutions:
        said.append(
            f"{library.title} gives wrong results of FP16 convolutions whose FP8 weight has one scale in all: "
            f"{_named(convolutions)}. Give such a weight a scale per channel, or compute in FP32."
        )
    return said


def _quantized(model: ir.Model, *op_types: str) -> Iterator[tuple[ir.Node, bool]]:
    """Nodes that compute in FP16 on 8-bit data and weights, with whether their weight has more than one scale."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in op_types or node.domain not in ("", "ai.onnx"):
            continue
        data, weight = (_dequantize(value) for value in node.inputs[:2])
        if data is None or weight is None or "block_size" in weight.attributes:
            continue
        codes, scale = weight.inputs[:2]
        stored = None if codes is None else ir.convenience.get_const_tensor(codes)
        number = None if scale is None else ir.convenience.get_const_tensor(scale)
        if stored is None or number is None or number.dtype != ir.DataType.FLOAT16:
            continue
        if stored.dtype == ir.DataType.FLOAT8E4M3FN or (
            stored.dtype == ir.DataType.INT8 and "Conv" not in op_types
        ):
            yield node, number.size > 1


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind a value, through a Transpose."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Transpose":
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _named(nodes: list[ir.Node]) -> str:
    names = [node.name or node.op_type for node in nodes]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
