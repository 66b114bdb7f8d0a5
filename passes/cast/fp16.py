"""FP16: the graph computes in float16, with float32 where float16 would overflow, vanish or lose too much.

Before: y: float32 = MatMul(x: float32, w: float32)
After:  y = Cast<float32>(MatMul(Cast<float16>(x), w: float16))     a cast only where the two precisions meet

Leaves alone: the types of the graph's inputs and outputs; nodes whose values exceed the range on the calibration
data, whose constants exceed it or would round to zero (an epsilon of 1e-12); `keep_ops`; sub-graphs; operators
whose types are unknown or that have no float16 form.
"""

from __future__ import annotations

import onnx_ir as ir
import pydantic

from passes.base import Pass, PassContext, PassResult
from passes.cast._apply import cast
from passes.cast._plan import Rules
from passes.shapes import infer_shapes
from passes.target import Target

LARGEST = 65504.0
"""The largest finite float16 (IEEE 754 binary16)."""


class CastFp16(Pass):
    """Compute in float16, keeping float32 where the numbers need it."""

    skip: tuple[str, ...] = pydantic.Field(
        default=(), description="What stays in float32: shell-style patterns of modules, nodes or operators."
    )
    keep_ops: tuple[str, ...] = pydantic.Field(
        default=("CumSum", "Exp", "Log", "Pow", "ReduceL2", "ReduceLogSumExp", "ReduceSum", "ReduceSumSquare"),
        description="Operators that stay in float32 because long sums, powers and exponentials lose too much.",
    )
    headroom: float = pydantic.Field(
        default=2.0, ge=1, description="A node stays in float32 when a value exceeds 65504 divided by this."
    )

    def check(self, target: Target) -> str | None:
        """The target must compute in FP16."""
        if "fp16" not in (*target.precisions, *target.emulated):
            return f"{target.title} does not compute in FP16; it runs {', '.join(target.precisions)}"
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Cast every node of the main graph that can be cast, and name the others."""
        infer_shapes(model)
        rules = Rules(ir.DataType.FLOAT16, self.skip, self.keep_ops, LARGEST / self.headroom)
        result = cast(model, rules, context)
        infer_shapes(model)
        return result
