"""INT8 MiniLM with its attention in 8 bits too, in the two ways that ONNX Runtime's CPU has: is it faster?

Before: q, k, v = MatMulIntegerToFloat(u, w, …) three times;  y = Attention(q, k, v, mask)
QAttention: y = com.microsoft.QAttention(u, the three weights side by side, …)    scores and their use in FP32
8-bit products: s = MatMulIntegerToFloat(uint8 q, uint8 k);  p = Softmax(s · scale + mask);
                y = MatMulIntegerToFloat(uint8 p, uint8 v)                        ranges taken anew on every run

`tests.benchmarks.int8_latency --make` writes both beside the models of the quantization table, so that they are
timed in the same turns. No pass writes either form: docs/int8-latency.md says what they gain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from passes.saving import save
from tests.benchmarks.quantization_cells import ATTENTION_IN_QATTENTION, ATTENTION_PRODUCTS, OURS_DYNAMIC, file_name

DOMAIN = "com.microsoft"


def make(folder: Path) -> None:
    """Write both forms of the dynamic model that lies in `folder`.

    Raises:
        ValueError: When it has no attention behind three integer products.
    """
    for cell, write in FORMS.items():
        model = ir.load(folder / file_name(OURS_DYNAMIC))
        found = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
        if not found:
            raise ValueError(f"{file_name(OURS_DYNAMIC)} holds no Attention")
        for node in found:
            write(model.graph, node)
        RemoveUnusedNodesPass()(model)
        save(model, folder / file_name(cell))


def with_projections(graph: ir.Graph, node: ir.Node) -> None:
    """Put QAttention in the place of an attention and the three products before it."""
    products = _projections(node)
    uint8, _, scale, _, zero = products[0].inputs[:5]
    weights, scales, biases = (
        [_numbers(product.inputs[index]) for product in products] for index in (1, 3, 6)
    )  # fmt: skip
    stem = str(node.outputs[0].name)
    stored = [
        _constant(graph, f"{stem}_{name}", np.concatenate(parts, axis=-1))
        for name, parts in (("weights", weights), ("scales", scales), ("biases", biases))
    ]
    (keeps,) = (value for value in graph.inputs if value.name == "attention_mask")
    cast = ir.node("Cast", [keeps], {"to": int(ir.DataType.INT32)})
    made = ir.node(
        "QAttention",
        [uint8, stored[0], stored[2], scale, stored[1], cast.outputs[0], zero],
        {"num_heads": node.attributes["q_num_heads"].as_int()},
        domain=DOMAIN,
    )
    _replace(graph, node, [cast, made])
    for product in products:
        graph.remove(product, safe=True)


def in_products(graph: ir.Graph, node: ir.Node) -> None:
    """Compute an attention's two products in 8 bits."""
    query, key, value, mask = node.inputs[:4]
    heads = node.attributes["q_num_heads"].as_int()
    stem = str(node.outputs[0].name)
    split = _constant(graph, f"{stem}_split", np.array([0, 0, heads, -1], np.int64))
    joined = _constant(graph, f"{stem}_joined", np.array([0, 0, -1], np.int64))
    factor = _constant(graph, f"{stem}_factor", np.float32(node.attributes["scale"].as_float()))
    step = _constant(graph, f"{stem}_step", np.float32(1 / 255))  # a softmax gives 0 to 1
    nothing = _constant(graph, f"{stem}_zero", np.uint8(0))
    nodes: list[ir.Node] = []

    def add(
        op: str, inputs: list[ir.Value | None], domain: str = "", outputs: int = 1, **options: object
    ) -> ir.Node:
        made = ir.node(op, inputs, options, domain=domain, num_outputs=outputs)
        nodes.append(made)
        return made

    def quantized(source: ir.Value | None, order: list[int]) -> tuple[ir.Value, ir.Value, ir.Value]:
        parts = add("DynamicQuantizeLinear", [add("Reshape", [source, split]).outputs[0]], outputs=3).outputs
        return add("Transpose", [parts[0]], perm=order).outputs[0], parts[1], parts[2]

    def product(left: tuple[ir.Value, ...], right: tuple[ir.Value, ...]) -> ir.Value:
        inputs = [left[0], right[0], left[1], right[1], left[2], right[2]]
        return add("MatMulIntegerToFloat", [*inputs], DOMAIN).outputs[0]

    scores = product(quantized(query, [0, 2, 1, 3]), quantized(key, [0, 2, 3, 1]))
    masked = add("Add", [add("Mul", [scores, factor]).outputs[0], mask])
    shares = add("Softmax", [masked.outputs[0]], axis=-1)
    uint8 = add("QuantizeLinear", [shares.outputs[0], step, nothing])
    mixed = product((uint8.outputs[0], step, nothing), quantized(value, [0, 2, 1, 3]))
    back = add("Transpose", [mixed], perm=[0, 2, 1, 3])
    add("Reshape", [back.outputs[0], joined])
    _replace(graph, node, nodes)


FORMS: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    ATTENTION_IN_QATTENTION: with_projections,
    ATTENTION_PRODUCTS: in_products,
}


def _projections(node: ir.Node) -> list[ir.Node]:
    """The integer products of query, key and value."""
    products = [value.producer() for value in node.inputs[:3] if value is not None]
    found = [product for product in products if product and product.op_type == "MatMulIntegerToFloat"]
    if len(found) != 3 or len({id(product.inputs[0]) for product in found}) != 1:
        raise ValueError(f"{node.name}: its query, key and value are not three integer products of one value")
    return found


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _constant(graph: ir.Graph, name: str, numbers: np.ndarray | np.generic) -> ir.Value:
    array = np.asarray(numbers)
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    graph.initializers[name] = value
    return value


def _replace(graph: ir.Graph, node: ir.Node, made: list[ir.Node]) -> None:
    graph.insert_before(node, made)
    node.outputs[0].replace_all_uses_with(made[-1].outputs[0])
    graph.remove(node, safe=True)
