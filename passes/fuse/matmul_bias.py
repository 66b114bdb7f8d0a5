"""Matmul + bias: one Gemm instead of a MatMul and an Add.

Before: y = Add(MatMul(x, w), b)                        x: (..., k), w: (k, n) constant, b: (n,) constant
After:  y = Reshape(Gemm(Reshape(x, [-1, k]), w, b), [..., n])

On ONNX Runtime's CPU the bias then costs nothing, and the Gelu behind it runs alone: ONNX Runtime's
BiasGelu, which it makes from Add and Gelu, takes 1.50 ms for (1024, 1536) floats, Gelu 0.97 ms (MiniLM, one
thread).

TensorRT fuses the addition itself, and the reshapes would stand in its way: left as it is.

Leaves alone: weights of another rank than 2, biases that are not one number per column, products used
elsewhere too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.draft import Draft
from passes.rewriting import Rewriting, rewrite


class FuseMatmulBias(Pass):
    """Write a matrix product with a bias as one Gemm."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every biased matmul of the main graph that has constant weights."""
        return rewrite(model, context, ("matmul_bias",), _match)


def _match(rewriting: Rewriting) -> None:
    if rewriting.context.target.dialect != "onnxruntime":
        rewriting.note("matmul_bias: TensorRT fuses the bias into the matmul from the plain form.")
        return
    for add in rewriting.nodes("Add"):
        for product, bias in m.operands(add):
            matmul = m.made_by(product, "MatMul")
            if matmul is None or not m.is_constant(bias):
                continue
            reason = _refusal(matmul, bias)
            if reason:
                rewriting.miss("matmul_bias", add, reason)
            else:
                draft = rewriting.draft("matmul_bias", matmul)
                rewriting.propose(_write(draft, add, matmul, bias, rewriting.model.graph.inputs))
            break


def _refusal(matmul: ir.Node, bias: ir.Value | None) -> str:
    """Why this matmul and bias stay apart, or ""."""
    x, weight = matmul.inputs
    if not m.is_constant(weight):
        return "the weight is not constant"
    if m.rank(weight) != 2:
        return f"the weight has rank {m.rank(weight)}, needs 2"
    columns = m.static(weight, 1)
    if (m.rank(bias), m.static(bias, -1)) != (1, columns):
        return f"the bias has rank {m.rank(bias)} and {m.static(bias, -1)} values, needs rank 1 and {columns}"
    if not m.is_private(matmul.outputs[0]):
        return "the product without bias is used elsewhere too"
    if (m.rank(x) or 0) < 2:
        return f"the input has rank {m.rank(x)}, needs 2 or more"
    if x is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
        return f"the input's type is {None if x is None else x.dtype}, needs a float"
    return ""


def _write(
    draft: Draft, add: ir.Node, matmul: ir.Node, bias: ir.Value | None, graph_inputs: Sequence[ir.Value]
) -> Draft:
    x, weight = matmul.inputs
    assert x is not None
    if m.rank(x) == 2:
        draft.replace(add.outputs[0], draft.op("Gemm", [x, weight, bias]))
        return draft
    rows, columns = m.static(weight, 0), m.static(weight, 1)
    flat = draft.op("Reshape", [x, draft.constant(np.array([-1, rows], np.int64), f"rows_of_{rows}")])
    product = draft.op("Gemm", [flat, weight, bias])
    source, count = _shape_source(graph_inputs, x)
    leading = draft.op("Shape", [source], start=0, end=count)
    shape = draft.op(
        "Concat", [leading, draft.constant(np.array([columns], np.int64), f"columns_{columns}")], axis=0
    )
    draft.least_opset = 15  # Shape with start and end
    draft.replace(add.outputs[0], draft.op("Reshape", [product, shape]))
    return draft


def _shape_source(graph_inputs: Sequence[ir.Value], x: ir.Value) -> tuple[ir.Value, int]:
    """(value, how many of its first dimensions are those before x's last): a graph input if one fits.

    All layers then share one Shape, and no layer's input is kept alive for it.
    """
    leading = (m.rank(x) or 1) - 1
    for value in graph_inputs:
        if (m.rank(value) or 0) >= leading and all(
            m.same_dimension(m.dimension(value, axis), m.dimension(x, axis)) for axis in range(leading)
        ):
            return value, leading
    return x, leading
