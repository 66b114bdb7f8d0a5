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
        (data, _), (weight, kind) = (_dequantize(value) for value in node.inputs[:2])
        if data is None or weight is None or kind != ir.DataType.FLOAT16 or "block_size" in weight.attributes:
            continue
        codes, scale = weight.inputs[:2]
        stored = None if codes is None else ir.convenience.get_const_tensor(codes)
        number = None if scale is None else ir.convenience.get_const_tensor(scale)
        if stored is None or number is None:
            continue
        if stored.dtype == ir.DataType.FLOAT8E4M3FN or (
            stored.dtype == ir.DataType.INT8 and "Conv" not in op_types
        ):
            yield node, number.size > 1


def _dequantize(value: ir.Value | None) -> tuple[ir.Node | None, int | None]:
    """The DequantizeLinear behind a value, through Transpose and Cast, and the type that is read of it."""
    kind: int | None = None
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            scale = node.inputs[1]
            own = node.attributes.get_int("output_dtype", 0) or (None if scale is None else scale.dtype)
            return node, kind or own
        if node.op_type not in ("Cast", "Transpose"):
            break
        if node.op_type == "Cast":
            kind = kind or node.attributes.get_int("to", 0)
        value = node.inputs[0]
    return None, None


def _named(nodes: list[ir.Node]) -> str:
    names = [node.name or node.op_type for node in nodes]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
