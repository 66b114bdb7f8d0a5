"""Layers in 16 bits for the built-in plugin: what is found in an ONNX graph before the parser reads it.

Before: y = Gelu(MatMul(x, w) + b)      or the sum plus a residual, or as it is; float16
After:  y = MatMulNBits<bits = 4>(x, bytes of w, b, residual)

w's bytes stay as they are, the bias stands as scales `(1, N)`, the residual as zero points, the form as
`accuracy_level`, and whether w is stored as `(N, K)` as `block_size`. Attention and layer normalisation are in
`tensorrt_dense_attention`. The model on disk stays as it is.

Leaves alone: computed weights or biases, products without a bias, other types, K or N that 64 does not divide, and
what lies in sub-graphs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from optimize.engines import tensorrt_dense_attention
from optimize.engines.tensorrt_dense_choice import ADDRESSABLE, MULTIPLE, STORED, Form
from optimize.engines.tensorrt_dense_nodes import DOMAIN, STANDARD, Nodes
from passes import matching as m

PRODUCTS, ATTENTION, NORMS = "products", "attention", "norms"
_ONE: Mapping[str, str] = {PRODUCTS: "product", ATTENTION: "attention", NORMS: "norm"}
_OPERATORS: Mapping[str, str] = {
    "MatMul": PRODUCTS, "Gemm": PRODUCTS, "Attention": ATTENTION, "LayerNormalization": NORMS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What became of the layers asked for.

    Attributes:
        taken: How many of each kind the plugin takes: {"products": 48}.
        left: How many TensorRT keeps, by kind and reason.
    """

    taken: Mapping[str, int]
    left: Mapping[tuple[str, str], int]

    def notes(self) -> list[str]:
        """One sentence of what is taken, and one of what is not, and why."""
        taken = [_counted(kind, number) for kind, number in self.taken.items() if number]
        left = [f"{_counted(kind, number)} ({reason})" for (kind, reason), number in self.left.items()]
        said = [f"Left to TensorRT, rather than to the built-in plugin: {', '.join(left)}."] if left else []
        return [f"{', '.join(taken) or 'No layers'} by the built-in plugin.", *said]


def _counted(kind: str, number: int) -> str:
    return f"{number} {_ONE[kind]}{'' if number == 1 else 's'}"


@dataclasses.dataclass(frozen=True)
class _Product:
    """A product with a bias.

    Attributes:
        node: MatMul or Gemm.
        x, weight, bias: Its operands.
        transposed: Whether the weight is `(N, K)`.
        k, n: Sizes.
        y: The value with the bias.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    transposed: bool
    k: int
    n: int
    y: ir.Value


def lower(model: ir.Model, asked: Collection[str]) -> Lowered:
    """Replace the layers of the kinds asked for: "products", "attention", "norms"."""
    nodes = Nodes(model.graph)
    taken, left = dict.fromkeys((kind for kind in _ONE if kind in asked), 0), Counter[tuple[str, str]]()
    # Attention first: it makes one bias of three, and so a product that can be taken.
    for is_product in (False, True):
        for node in list(model.graph):
            kind = _OPERATORS.get(node.op_type) if node.domain in STANDARD else None
            if kind is None or kind not in asked or (kind == PRODUCTS) is not is_product:
                continue
            reason = _TAKE[kind](nodes, node)
            if reason is None:
                taken[kind] += 1
            else:
                left[kind, reason] += 1
        common.RemoveUnusedNodesPass()(model)
    if any(taken.values()):
        model.opset_imports.setdefault(DOMAIN, 1)
    return Lowered(taken, left)


def _take_product(nodes: Nodes, node: ir.Node) -> str | None:
    """Replace a product with what follows it; returns why not."""
    product = _product(node)
    if isinstance(product, str):
        return product
    y, form, residual = _following(product)
    operands = [
        product.x,
        nodes.retyped(product.weight, ir.DataType.UINT8, (1, 1, 2 * product.k * product.n)),
        nodes.retyped(product.bias, ir.DataType.FLOAT16, (1, product.n)),
        *([] if residual is None else [residual]),
    ]
    stored = next(block for block, transposed in STORED.items() if transposed == product.transposed)
    numbers = {"K": product.k, "N": product.n, "block_size": stored, "accuracy_level": int(form)}
    nodes.stand_in(node, y, operands, numbers)
    return None


_TAKE = {
    PRODUCTS: _take_product,
    ATTENTION: tensorrt_dense_attention.take_attention,
    NORMS: tensorrt_dense_attention.take_norm,
}


def _product(node: ir.Node) -> _Product | str:
    """A product that the plugin computes, or why it does not."""
    x, weight = node.inputs[:2]
    if x is None or weight is None or not m.is_constant(weight) or weight.const_value is None:
        return "computed weights"
    y, bias = node.outputs[0], None
    transposed = node.op_type == "Gemm" and bool(m.attribute(node, "transB", 0))
    if node.op_type == "Gemm":
        if m.attribute(node, "alpha", 1.0) != 1.0 or m.attribute(node, "beta", 1.0) != 1.0:
            return "alpha or beta"
        if m.attribute(node, "transA", 0):
            return "a transposed input"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
    else:
        add = m.only_user(y)
        if add is not None and add.op_type == "Add" and add.domain in STANDARD:
            bias = next((other for value, other in m.operands(add) if value is y and m.is_constant(other)), None)
            y = add.outputs[0]
    if bias is None or not m.is_constant(bias) or bias.const_value is None:
        return "no constant bias"
    if {x.dtype, weight.dtype, bias.dtype} != {ir.DataType.FLOAT16}:
        return "not in float16"
    if m.rank(weight) != 2 or m.rank(bias) != 1 or m.rank(x) not in (2, 3):
        return "shapes other than (…, K) · (K, N) + (N)"
    k, n = (m.static(weight, axis) for axis in ((1, 0) if transposed else (0, 1)))
    if k is None or n is None or m.static(bias, 0) != n or m.static(x, -1) != k:
        return "shapes other than (…, K) · (K, N) + (N)"
    if k % MULTIPLE or n % MULTIPLE:
        return f"K or N that {MULTIPLE} does not divide"
    if 2 * k * n >= ADDRESSABLE:
        return "weights of 2³¹ bytes or more"
    return _Product(node, x, weight, bias, transposed, k, n, y)


def _following(product: _Product) -> tuple[ir.Value, Form, ir.Value | None]:
    """The value that the layer gives, its form, and the residual."""
    y = product.y
    user = m.only_user(y)
    if user is not None and user.op_type == "Gelu" and user.domain in STANDARD:
        form = Form.GELU_TANH if m.attribute(user, "approximate", "none") == "tanh" else Form.GELU_ERF
        return user.outputs[0], form, None
    if user is not None and user.op_type == "Add" and user.domain in STANDARD:
        other = next((other for value, other in m.operands(user) if value is y), None)
        if other is not None and other is not y and other.dtype == ir.DataType.FLOAT16 and _same_shape(other, y):
            return user.outputs[0], Form.PLAIN, other
    return y, Form.PLAIN, None


def _same_shape(left: ir.Value, right: ir.Value) -> bool:
    if left.shape is None or right.shape is None or left.shape.rank() != right.shape.rank():
        return False
    pairs = ((m.dimension(left, axis), m.dimension(right, axis)) for axis in range(left.shape.rank()))
    return all(m.same_dimension(one, other) for one, other in pairs)
