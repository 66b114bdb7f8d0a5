"""Attention and layer normalisation for the built-in plugin, next to the dense products.

Before: q, k, v = Split(MatMul(x, w)) + three biases, y = Attention(q, k, v)        as `fuse.qkv_merge` writes it
After:  y = attend(MatMul(x, w) + one bias)
Before: y = LayerNormalization(x, scale, bias)
After:  y = norm(x, scale and bias)

Both are MatMulNBits to the parser with block_size 128: `accuracy_level` says which, `K` holds a float32's bits (the
scale of scores, or epsilon), and the float16 constant tells heads and their size, or is `(2, width)`.

Leaves alone: masks, past keys and values, causal or capped scores, other numbers of heads for keys, heads of other
sizes, and norms over several axes or without a bias.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import onnx_ir as ir

from optimize.engines.tensorrt_dense_choice import ATTENTION, HEAD_SIZES, NORM, NORM_WIDTH, REST
from optimize.engines.tensorrt_dense_nodes import Nodes
from passes import matching as m

_HALF = ir.DataType.FLOAT16
_THIRDS = "not three thirds of one product, as fuse.qkv_merge makes them"


def take_attention(nodes: Nodes, node: ir.Node) -> str | None:
    """Replace an attention; its product gets one bias. Returns why not."""
    heads = int(m.attribute(node, "q_num_heads", 0))
    if len([value for value in node.inputs if value is not None]) != 3:
        return "a mask, or past keys and values"
    if heads <= 0 or heads != m.attribute(node, "kv_num_heads", 0):
        return "heads in an axis of their own, or shared ones"
    if m.attribute(node, "is_causal", 0) or m.attribute(node, "softcap", 0.0):
        return "causal or capped scores"
    if _gives_more(node):
        return "more than one output"
    parts, biases = [], []
    for value in node.inputs:
        add = m.made_by(value, "Add")
        pair = next((pair for pair in m.operands(add) if m.is_constant(pair[1])), None) if add is not None else None
        bias = m.constant(pair[1]) if pair is not None else None
        if pair is None or bias is None or bias.ndim != 1 or value is None or not m.is_private(value):
            return _THIRDS
        parts.append(pair[0])
        biases.append(bias)
    split = m.made_by(parts[0], "Split")
    if split is None or list(split.outputs) != parts or m.attribute(split, "axis", 0) not in (-1, 2):
        return _THIRDS
    product, width = split.inputs[0], len(biases[0])
    if m.made_by(product, "MatMul") is None or product is None or not m.is_private(product):
        return _THIRDS
    if {len(bias) for bias in biases} != {width} or m.rank(product) != 3 or m.static(product, 2) != 3 * width:
        return _THIRDS
    if product.dtype != _HALF or {bias.dtype for bias in biases} != {np.dtype(np.float16)}:
        return "not in float16"
    if width % heads or width // heads not in HEAD_SIZES:
        return f"heads of a size other than {', '.join(map(str, HEAD_SIZES))}"
    size, scale = width // heads, m.attribute(node, "scale", None)
    add = ir.node("Add", [product, nodes.constant(np.concatenate(biases))])
    add.outputs[0].type, add.outputs[0].shape = product.type, product.shape
    number = size**-0.5 if scale is None else float(scale)
    _stand_in(nodes, node, add.outputs[0], np.zeros((heads, size), np.float16), ATTENTION, number, width, add)
    return None


def take_norm(nodes: Nodes, node: ir.Node) -> str | None:
    """Replace a layer normalisation; returns why not."""
    x = node.inputs[0]
    scale, bias = (m.constant(value) for value in (*node.inputs[1:3], None)[:2])
    rank = m.rank(x)
    if x is None or rank not in (2, 3) or m.attribute(node, "axis", -1) not in (-1, rank - 1):
        return "not over the last of two or three axes"
    if scale is None or bias is None or scale.ndim != 1 or scale.shape != bias.shape:
        return "no constant scale and bias"
    if x.dtype != _HALF or {scale.dtype, bias.dtype} != {np.dtype(np.float16)}:
        return "not in float16"
    if m.static(x, -1) != len(scale) or len(scale) > NORM_WIDTH:
        return f"rows of an unknown width, or of more than {NORM_WIDTH}"
    if _gives_more(node):
        return "more than one output"
    epsilon = float(m.attribute(node, "epsilon", 1e-5))
    _stand_in(nodes, node, x, np.stack([scale, bias]), NORM, epsilon, len(scale))
    return None


def _gives_more(node: ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs[1:])


def _stand_in(
    nodes: Nodes, node: ir.Node, x: ir.Value, half: np.ndarray[Any, Any], which: int, number: float, width: int,
    *before: ir.Node,
) -> None:  # fmt: skip
    """A layer that reads `x` and `half` in the node's place, after the nodes `before`."""
    bits = struct.unpack("<i", struct.pack("<f", number))[0]
    numbers = {"K": bits, "N": width, "block_size": REST, "accuracy_level": which}
    nodes.stand_in(node, node.outputs[0], [x, nodes.no_bytes(), nodes.constant(half)], numbers, *before)
