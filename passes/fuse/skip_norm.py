"""Skip + norm: the addition in front of a normalization, in the form that the engine runs fastest.

Before: y = LayerNormalization(Add(x, skip), scale, bias)
After:  y = LayerNormalization(Sum(x, skip), scale, bias)     (ONNX Runtime's CPU)

On ONNX Runtime's CPU the fused operator is the slower one: its SkipLayerNormalization sums each row one
element at a time and takes 1.94 ms for (1024, 384) floats where LayerNormalization takes 0.20 ms and the
addition 0.11 ms (MiniLM, one thread: 18 of 271 ms). ONNX Runtime makes it from Add and LayerNormalization
by itself; written as Sum, which means the same, the pair stays apart. The same holds for its
SkipSimplifiedLayerNormalization, made of Add and SimplifiedLayerNormalization. Sum runs on one thread: on two it
takes 0.05 ms longer than Add, where the fused operator loses 1.7 ms. RMSNormalization keeps its Add: ONNX Runtime
does not look for it.

TensorRT fuses the addition into its native normalization from the plain form, which is left as it is.

Leaves alone: additions of a constant (a bias, not a skip) and of values with different shapes.
"""

from __future__ import annotations

import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

NORMS = {
    "LayerNormalization": "skip_layer_norm",
    "SimplifiedLayerNormalization": "skip_rms_norm",
}


class FuseSkipNorm(Pass):
    """Keep ONNX Runtime from fusing a residual addition and a normalization into its slower operator."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite the addition in front of every normalization of the main graph."""
        return rewrite(model, context, ("skip_layer_norm", "skip_rms_norm"), _match)


def _match(rewriting: Rewriting) -> None:
    if rewriting.context.target.dialect != "onnxruntime":
        rewriting.note("skip_norm: TensorRT fuses the addition into its normalization from the plain form.")
        return
    for norm in rewriting.nodes(*NORMS):
        add = m.made_by(norm.inputs[0], "Add")
        if add is None or any(m.is_constant(side) for side in add.inputs):
            continue
        pattern = NORMS[norm.op_type]
        left, right = add.inputs
        ranks = m.rank(left), m.rank(right)
        if ranks[0] is None or ranks[0] != ranks[1]:
            rewriting.miss(pattern, norm, f"the two sides have ranks {ranks[0]} and {ranks[1]}, need the same")
            continue
        draft = rewriting.draft(pattern, add)
        draft.replace(add.outputs[0], draft.op("Sum", [left, right]))
        rewriting.propose(draft)
