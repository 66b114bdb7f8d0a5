"""SiLU: x times its own sigmoid, in one operator; with it the gate of SwiGLU.

Before: y = x * Sigmoid(x)
After:  y = com.microsoft.QuickGelu(x, alpha=1)          (ONNX Runtime)
        y = Swish(x)                                     (TensorRT that reads ONNX opset 24)

QuickGelu is x * Sigmoid(alpha * x), so alpha 1 is SiLU; it goes through the data once instead of twice. The product
with the other half of SwiGLU is counted as `swiglu` when it follows, and stays a Mul: no target has more.

Leaves alone: sigmoids used elsewhere too.
"""

from __future__ import annotations

import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite


class FuseSilu(Pass):
    """Write x * Sigmoid(x) as one operator."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every SiLU of the main graph."""
        return rewrite(model, context, ("silu", "swiglu"), _match)


def _match(rewriting: Rewriting) -> None:
    target = rewriting.context.target
    for sigmoid in rewriting.nodes("Sigmoid"):
        x = sigmoid.inputs[0]
        mul = next((node for node in m.users(sigmoid.outputs[0]) if node.op_type == "Mul"), None)
        if x is None or mul is None or x not in mul.inputs:
            continue
        if not m.is_private(sigmoid.outputs[0]):
            rewriting.miss("silu", sigmoid, "the sigmoid is used elsewhere too")
            continue
        gate = m.only_user(mul.outputs[0])
        pattern = "swiglu" if gate is not None and gate.op_type == "Mul" and _two_products(gate) else "silu"
        if target.dialect == "onnxruntime":
            draft = rewriting.draft(pattern, sigmoid)
            draft.replace(mul.outputs[0], draft.op("QuickGelu", [x], domain="com.microsoft", alpha=1.0))
        else:
            draft = rewriting.draft(pattern, sigmoid, least_opset=24)
            draft.replace(mul.outputs[0], draft.op("Swish", [x], alpha=1.0))
        rewriting.propose(draft)


def _two_products(gate: ir.Node) -> bool:
    """Whether both sides of a product are computed, rather than one being a constant factor."""
    return not any(m.is_constant(side) for side in gate.inputs)
