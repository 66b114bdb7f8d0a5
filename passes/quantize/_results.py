"""Pairs behind convolutions and in front of operators that only move values, where the target's rules ask for them.

ONNX Runtime's CPU runs a convolution in integers only between a DequantizeLinear and a QuantizeLinear
(`QLinearConv`); without one behind, it converts the input back and multiplies in floating point. So the result of
each goes through a pair, behind its Relu or Clip, and everything that reads it reads the pair.

Before: `c = Concat(Relu(Conv(x, w)), r)`, `y = Conv(Pair(c), v)`
After: `c = Concat(Pair(Relu(Conv(x, w))), Pair(r))`, with the scale of the pair behind: the same numbers
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from passes import matching as m
from passes.qdq import Editor, fake_quantize
from passes.quantize._pairs import MOVES, moves, pair_behind, pair_on


def result_of(convolution: ir.Node) -> ir.Value:
    """What is quantized of a convolution's result: behind the Relu or Clip that alone reads it."""
    value = convolution.outputs[0]
    reader = m.only_user(value)
    if reader is not None and reader.op_type in ("Relu", "Clip") and reader.graph is convolution.graph:
        return reader.outputs[0]
    return value


def repeat_before(
    editor: Editor, graph: ir.Graph, op_types: Iterable[str], results: Collection[ir.Value] = ()
) -> int:
    """Repeat each pair behind an operator that moves values in front of it, from operator to operator.

    Only where nothing but the pair reads the operator's result, and the pair has one stored scale. A result that
    comes from a Relu is left to the pair of its own range where this one's is wider (`QLinearConcat` takes a scale
    for each input). What an earlier step's pair gives keeps its scale.

    Args:
        editor: Names and sharing.
        graph: Where to look for pairs.
        op_types: Operators to do it for; others than `MOVES` would change the numbers and are left alone.
        results: Values that get a pair of their own (`quantize_result`).

    Returns:
        The number of operators that now read pairs.
    """
    wanted = MOVES.intersection(op_types)
    queue = [node for node in graph if node.op_type == "QuantizeLinear"]
    done: set[ir.Node] = set()
    while queue:
        quantize = queue.pop()
        behind, scale, zero = quantize.inputs[0], quantize.inputs[1], quantize.inputs[2:3]
        mover = m.made_by(behind, *wanted) if wanted else None
        if mover is None or behind is None or m.only_user(behind) is not quantize:
            continue
        if mover.graph is not graph or not moves(mover):
            continue
        if scale is None or not zero or zero[0] is None or m.rank(scale) != 0:
            continue
        if not (scale.is_initializer() and zero[0].is_initializer()):  # a node may lie behind the new pair
            continue
        for index in range(len(mover.inputs) if mover.op_type == "Concat" else 1):
            value = mover.inputs[index]
            if value is None or _is_pair(value, scale, zero[0]):
                continue
            earlier = pair_behind(value, signed=zero[0].dtype == ir.DataType.INT8)
            if earlier is not None and not earlier[1]:
                continue
            if value in results and _is_clipped_elsewhere(value, zero[0]):
                continue
            pair = fake_quantize(editor, value, graph, scale, zero[0], None)
            mover.replace_input_with(index, pair)
            done.add(mover)
            queue += [node for node in m.users(value) if node.op_type == "QuantizeLinear"]
    return len(done)


def quantize_result(editor: Editor, value: ir.Value, scale: ir.Value, zero_point: ir.Value) -> None:
    """Let everything that reads a convolution's result read a pair behind it: an earlier step's where there is one.

    Args:
        editor: Names and sharing.
        value: The result (`result_of`).
        scale: Scalar.
        zero_point: Scalar, of the stored type.
    """
    producer = value.producer()
    assert producer is not None
    assert isinstance(producer.graph, ir.Graph)
    known = pair_on(value, producer.graph, signed=zero_point.dtype == ir.DataType.INT8)
    pair = known.result if known else fake_quantize(editor, value, producer.graph, scale, zero_point, None)
    dequantize = pair.producer()
    assert dequantize is not None
    assert dequantize.inputs[0] is not None
    quantize = dequantize.inputs[0].producer()
    given = value.is_graph_output()
    value.replace_all_uses_with(pair, replace_graph_outputs=True)
    assert quantize is not None
    quantize.replace_input_with(0, value)
    if given:
        name, value.name = value.name, pair.name
        pair.name = name


def has_pair(value: ir.Value) -> bool:
    """Whether nothing but one quantizer reads the value."""
    reader = m.only_user(value)
    return reader is not None and reader.op_type == "QuantizeLinear"


def _is_clipped_elsewhere(value: ir.Value, zero_point: ir.Value) -> bool:
    """Whether the value comes from a Relu or Clip that a quantizer with this zero point does not do by itself.

    ONNX Runtime then keeps it in floating point, and the convolution before it; with its own range it is gone.
    """
    number = m.constant(zero_point)
    return m.made_by(value, "Relu", "Clip") is not None and number is not None and int(number) != 0


def _is_pair(value: ir.Value, scale: ir.Value, zero_point: ir.Value) -> bool:
    """Whether a pair of this scale makes the value."""
    node = m.made_by(value, "DequantizeLinear")
    return node is not None and node.inputs[1] is scale and node.inputs[2] is zero_point
