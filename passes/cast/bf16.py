"""BF16: the graph computes in bfloat16, which has float32's range and 8 significant bits.

Before: y: float32 = MatMul(x: float32, w: float32)
After:  y = Cast<float32>(MatMul(Cast<bfloat16>(x), w: bfloat16))    a cast only where the two precisions meet

Leaves alone: the types of the graph's inputs and outputs; `keep_ops`; sub-graphs; operators whose types are
unknown or that have no bfloat16 form.
"""

from __future__ import annotations

import ml_dtypes
import onnx_ir as ir
import pydantic

from passes import opset
from passes.base import Pass, PassContext, PassResult
from passes.cast._apply import cast
from passes.cast._plan import Rules
from passes.shapes import infer_shapes
from passes.target import Target

OPSET = 22
"""Since this opset every floating-point operator, Conv among them, has a bfloat16 form."""


class CastBf16(Pass):
    """Compute in bfloat16, keeping float32 where eight significant bits are too few."""

    skip: tuple[str, ...] = pydantic.Field(
        default=(), description="What stays in float32: shell-style patterns of modules, nodes or operators."
    )
    keep_ops: tuple[str, ...] = pydantic.Field(
        default=("CumSum", "Exp", "Log", "Pow", "ReduceL2", "ReduceLogSumExp", "ReduceSum", "ReduceSumSquare"),
        description="Operators that stay in float32 because long sums, powers and exponentials lose too much.",
    )

    def check(self, target: Target) -> str | None:
        """The target must compute in BF16 and read an opset that has it everywhere."""
        if "bf16" not in (*target.precisions, *target.emulated):
            return f"{target.title} does not compute in BF16; it runs {', '.join(target.precisions)}"
        if target.opset < OPSET:
            return f"{target.title} reads opset {target.opset}; bfloat16 operators need {OPSET}"
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Cast every node of the main graph that can be cast, and name the others."""
        opset.lift(model, OPSET)
        infer_shapes(model)
        largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
        result = cast(model, Rules(ir.DataType.BFLOAT16, self.skip, self.keep_ops, largest), context)
        infer_shapes(model)
        return result
