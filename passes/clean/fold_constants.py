"""Constant folding.

Before: s = Shape(x) for x : (2, 3)      t = Add(c, d) with constants c, d
After:  s = [2, 3]                       t = c + d, computed now

Also takes the branch of an `If` whose condition is constant. Inputs are read only up to `limit_bytes`, so
that large weights stay lazy.

Leaves alone: random operators, Q/DQ pairs (they carry the quantization), ConstantOfShape, operators inside a
function that depend on the call's attributes, anything that reads more than the limit, and results that would
be larger than what they replace.
"""

from __future__ import annotations

import onnx_ir as ir
import pydantic

from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern, Skip
from passes.clean._scopes import nodes, place
from passes.names import module_of

ROUNDS = 10
"""Taking a branch may lay more constants bare; real models settle in two rounds."""


class FoldConstants(Pass):
    """Compute now what does not depend on the inputs."""

    limit_bytes: int = pydantic.Field(
        default=1 << 16, ge=0, description="Most bytes of constants that one operator may read to be folded."
    )
    limit_elements: int = pydantic.Field(
        default=512 * 512, ge=0, description="Most elements of a result that replaces smaller constants."
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold until nothing changes.

        Raises:
            PassFailed: When an operator cannot be computed, which means that the model is not valid.
        """
        from passes.clean._folder import Folder

        folder = Folder(self.limit_bytes, self.limit_elements)
        before = nodes(model)
        declared = [(value.shape, value.type) for value in model.graph.outputs]
        for _ in range(ROUNDS):
            try:
                result = folder(model)
            except RuntimeError as error:
                raise PassFailed(
                    f"fold_constants: {error}: {error.__cause__}. Check this operator's inputs."
                ) from error
            if not result.modified:
                break
        for value, (shape, kind) in zip(model.graph.outputs, declared, strict=True):
            value.shape, value.type = shape, kind  # the library sharpens them; a signature is the user's
        skips = [
            Skip(
                place(node),
                f"reads {size} bytes of constants, at most {self.limit_bytes} are read",
                module_of(node),
            )
            for node, size in folder.too_large.items()
            if node.graph is not None
        ]
        return PassResult(
            patterns=(Pattern("folded", folder.replaced),),
            skips=tuple(skips),
            figures={"nodes before": before, "nodes after": nodes(model)},
        )
