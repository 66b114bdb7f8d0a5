"""Finding the weights of matrix products: which tensor, which axis is summed over, who else uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from passes import names
from passes.base import Skip

MATRIX_OPS = ("MatMul", "Gemm")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Use:
    """One consumer of a weight.

    Attributes:
        node: The MatMul or Gemm.
        through: The Transpose between the weight and `node`, if there is one.
    """

    node: ir.Node
    through: ir.Node | None = None

    @property
    def module(self) -> str:
        """The source module of `node`, or ""."""
        return names.module_of(self.node)

    @property
    def name(self) -> str:
        """What reports and recipes call the layer (`passes.names.label_of`)."""
        return names.label_of(self.node)

    def skip(self, reason: str) -> Skip:
        """A `Skip` for `node` that names its module."""
        return Skip(names.name_of(self.node), reason, self.module)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant right-hand side of matrix products.

    Attributes:
        value: The initializer (or the output of a Constant node).
        tensor: Its data, possibly lazy or on disk.
        axis: The axis of the stored tensor that the product sums over (K), counted from the front.
        uses: Every consumer of `value`.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    axis: int
    uses: tuple[Use, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape: `(K, N)` or `(N, K)`, possibly with leading batch axes."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    @property
    def summed(self) -> int:
        """K, the number of products in each sum."""
        return self.shape[self.axis]

    @property
    def channel_axis(self) -> int:
        """The axis of the output channels (N)."""
        rank = len(self.shape)
        if self.uses[0].node.op_type == "Conv":
            return 0
        return rank - 1 if self.axis == rank - 2 else rank - 2

    @property
    def name(self) -> str:
        """The value's name."""
        return self.value.name or ""


def find_weights(model: ir.Model, ops: Sequence[str], skip: Iterable[str]) -> tuple[list[Weight], list[Skip]]:
    """The weights that a weight-only format can take, in graph order, and everything passed over.

    Sub-graphs are searched too. A weight is offered once, whatever the number of its uses, and only when all
    of them sum over the same axis: otherwise the floating-point copy would have to stay beside the new one.

    Args:
        model: The model; nothing is changed and no weight is read.
        ops: Operator types to look at, of `MATRIX_OPS`.
        skip: Patterns of nodes, modules or operator types to leave alone (`passes.names.matches`).
    """
    patterns = tuple(skip)
    candidates: dict[ir.Value, list[tuple[Use, int]]] = {}
    skips: list[Skip] = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in ops or node.domain not in ("", "ai.onnx"):
            continue
        if names.matches(node, patterns):
            skips.append(_skip(node, "named under skip"))
            continue
        found = _weight_of(node)
        if isinstance(found, str):
            skips.append(_skip(node, found))
            continue
        value, use, axis = found
        candidates.setdefault(value, []).append((use, axis))

    weights = []
    for value, uses in candidates.items():
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None  # _weight_of saw it
        reason = _reason_against(value, uses)
        if reason:
            skips += [_skip(use.node, reason) for use, _ in uses]
            continue
        weights.append(Weight(value, tensor, uses[0][1], tuple(use for use, _ in uses)))
    return weights, skips


def _skip(node: ir.Node, reason: str) -> Skip:
    return Skip(names.name_of(node), reason, names.module_of(node))


def _weight_of(node: ir.Node) -> tuple[ir.Value, Use, int] | str:
    """`(value, use, summed axis)` of a node's weight, or why it has none that can be quantized."""
    left, value = node.inputs[0], node.inputs[1]
    if value is None or left is None:
        return "an input is missing"
    transposed = node.op_type == "Gemm" and _integer(node, "transB") == 1
    through: ir.Node | None = None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        through, value = producer, producer.inputs[0]
        producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "its weight is quantized already"
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        if ir.convenience.get_const_tensor(left) is not None:
            return "its weight is the left input; only a right-hand weight is quantized"
        if value.is_graph_input():
            return f"its right input '{value.name}' is a graph input, not a stored weight"
        if producer is not None and producer.op_type not in ("Constant",):
            return f"its right input is computed by {producer.op_type}, not a stored weight"
        return "its right input is not a stored weight"
    if value.is_graph_input():
        return f"its weight '{value.name}' is also a graph input, so a caller may replace it"
    if tensor.dtype not in FLOATS:
        return f"its weight is {tensor.dtype.name}, needs FLOAT, FLOAT16 or BFLOAT16"
    rank = len(tensor.shape)
    if rank < 2:
        return f"its weight has {rank} dimension, needs 2 or more"
    if node.op_type == "Conv":
        return (value, Use(node), 1) if through is None else "its weight passes through Transpose"
    if rank > 2 and node.op_type == "Gemm":
        return f"its weight has {rank} dimensions, Gemm takes 2"
    if through is not None:
        permutation = _permutation(through, rank)
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        if permutation != swapped:
            return f"its weight passes through Transpose with perm {permutation}, needs {swapped}"
        transposed = not transposed
    return value, Use(node, through), rank - 1 if transposed else rank - 2


def _reason_against(value: ir.Value, uses: Sequence[tuple[Use, int]]) -> str | None:
    """Why a weight with these uses stays in floating point, or None."""
    if value.is_graph_output():
        return f"its weight '{value.name}' is also a graph output"
    axes = {(axis, use.node.op_type == "Conv") for use, axis in uses}
    if len(axes) > 1:
        return f"its weight '{value.name}' is shared with a product that sums over the other axis"
    known = {use.through or use.node for use, _ in uses}
    for consumer in value.consumers():
        if consumer not in known:
            return f"its weight '{value.name}' also feeds {consumer.op_type} '{consumer.name}'"
    for through in {use.through for use, _ in uses if use.through is not None}:
        output = through.outputs[0]
        if output.is_graph_output():
            return f"its transposed weight '{output.name}' is also a graph output"
        covered = {use.node for use, _ in uses}
        for consumer in output.consumers():
            if consumer not in covered:
                return f"its transposed weight also feeds {consumer.op_type} '{consumer.name}'"
    return None


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _permutation(node: ir.Node, rank: int) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(reversed(range(rank))) if attribute is None else list(attribute.as_ints())
