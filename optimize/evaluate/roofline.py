"""The best latency a device allows for a model: operations over peak rate, or bytes over bandwidth.

The larger of the two times is a floor that no engine gets under (the roofline model: Williams, Waterman and
Patterson, 2009). Operations are those of matrix products and convolutions; bytes are the weights as stored plus
the model's inputs and outputs, each moved once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
import onnx_ir as ir

from optimize.facts import Roofline
from passes.target import Target

_STORED_AS = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8e4m3fn": "fp8",
    "int8": "int8",
    "uint8": "int8",
}


def estimate(exported: ir.Model, optimized: ir.Model, target: Target, sizes: Mapping[str, int]) -> Roofline | None:
    """The floor of `optimized` on `target` for one run; None when the target's peak rates are not known.

    Args:
        exported: The model before passes; its standard operators are counted.
        optimized: The model that runs; its weights are weighed as they are stored.
        target: The device.
        sizes: Size of every named dynamic axis.
    """
    if target.bandwidth_bytes_per_s is None or not target.peak_ops_per_s:
        return None
    operations, uncounted = count_operations(exported, sizes)
    weights = {"": 0}
    for value in optimized.graph.initializers.values():
        if value.const_value is not None:
            name = value.const_value.dtype.name.lower()
            weights[name] = weights.get(name, 0) + value.const_value.nbytes
    edges = [*exported.graph.inputs, *exported.graph.outputs]
    moved = float(sum(weights.values()) + sum(_bytes(value, sizes) for value in edges))
    stored = max(weights, key=lambda name: weights[name])
    wanted = _STORED_AS.get(stored, "fp16")
    rates = target.peak_ops_per_s
    precision = wanted if wanted in rates else "fp16" if "fp16" in rates else next(iter(rates))
    compute_ms = operations / dict(rates)[precision] * 1e3
    memory_ms = moved / target.bandwidth_bytes_per_s * 1e3
    return Roofline(
        operations=operations,
        bytes_moved=moved,
        precision=precision,
        compute_ms=compute_ms,
        memory_ms=memory_ms,
        floor_ms=max(compute_ms, memory_ms),
        bound="compute" if compute_ms >= memory_ms else "memory",
        sizes=dict(sizes),
        uncounted=tuple(uncounted),
        source=target.sources.get("peak_ops_per_s", ""),
    )


def count_operations(model: ir.Model, sizes: Mapping[str, int]) -> tuple[float, list[str]]:
    """Operations of one run (a multiplication and an addition count as two), and the nodes left uncounted."""
    shapes = _shapes(model, sizes)
    total = 0.0
    uncounted = []
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv", "Attention"):
            continue
        known = [shapes.get(value.name or "") if value is not None else None for value in node.inputs]
        result = shapes.get(node.outputs[0].name or "")
        counted = _operations(node, known, result)
        if counted is None:
            uncounted.append(node.name or node.op_type)
        else:
            total += counted
    return total, uncounted


def _operations(node: ir.Node, inputs: list[list[int] | None], result: list[int] | None) -> float | None:
    if node.op_type == "Attention":
        query, key = inputs[0], inputs[1]
        if query is None or key is None or len(query) != 4 or len(key) != 4:
            return None
        batch, heads, tokens, width = query
        return 4.0 * batch * heads * tokens * key[2] * width
    first, second = inputs[0], inputs[1]
    if result is None or (node.op_type == "Conv" and second is None) or (node.op_type != "Conv" and first is None):
        return None
    if node.op_type == "Conv":
        assert second is not None
        return 2.0 * math.prod(result) * math.prod(second[1:])
    assert first is not None
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
    return 2.0 * math.prod(result) * (first[-2] if transposed else first[-1])


def _shapes(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Every value's shape with the dynamic axes at `sizes`, as far as shape inference finds it."""
    proto = _without_weights(model)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    found: dict[str, list[int]] = {}
    for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]:
        dims = value.type.tensor_type.shape.dim
        given = [dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, 0) for dim in dims]
        if all(given):
            found[value.name] = given
    for name, initializer in model.graph.initializers.items():
        if initializer.const_value is not None:
            found[name] = list(initializer.const_value.shape.numpy())
    return found


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model's protobuf with large weights turned into inputs of the same shape: their bytes are not needed."""
    clone = model.clone()
    for name, value in list(clone.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > 1024:
            value.const_value = None
            value.shape = ir.Shape(tensor.shape.numpy())
            value.type = ir.TensorType(tensor.dtype)
            del clone.graph.initializers[name]
            clone.graph.inputs.append(value)
    return ir.to_proto(clone)


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> float:
    if value.shape is None or value.dtype is None or value.dtype.is_string():
        return 0.0
    dims = [dim if isinstance(dim, int) else sizes.get(str(dim.value), 1) for dim in value.shape]
    return math.prod(dims) * value.dtype.itemsize
