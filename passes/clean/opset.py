"""A newer opset.

Before: opset 19, y = GridSample(x, grid, mode="bilinear")
After:  opset 20, y = GridSample(x, grid, mode="linear")

Passes raise the opset themselves when they write a newer operator; this one is for models that should come
out at a given version.

Leaves alone: models that are there already or beyond; going down would lose operators.
"""

from __future__ import annotations

import onnx_ir as ir
import pydantic

from passes import opset
from passes.base import Pass, PassContext, PassResult, Pattern
from passes.target import Target


class RaiseOpset(Pass):
    """Convert the model to a newer standard opset."""

    least: int = pydantic.Field(ge=18, le=25, description="The standard opset to come out at, or newer.")

    def check(self, target: Target) -> str | None:
        """The engine must read the opset."""
        if self.least > target.opset:
            return f"opset {self.least} is beyond what {target.title} reads; use at most {target.opset}"
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Convert if the model is older."""
        before = opset.current(model)
        opset.lift(model, self.least, "clean.opset")
        return PassResult(
            patterns=(Pattern("version", max(0, opset.current(model) - before)),),
            figures={"opset before": before, "opset after": opset.current(model)},
        )
