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
from onnxscript.optimizer import _constant_folding as folding

from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern, Skip
from passes.clean._scopes import is_random, nodes, place
from passes.names import carry_module, module_of

SEQUENCES = ("SplitToSequence", "SequenceAt", "ConcatFromSequence")
"""The library writes these as Split, Squeeze and Unsqueeze with inputs that they have since opset 13."""

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
        folder = _Folder(self.limit_bytes, self.limit_elements)
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


class _Folder(folding.FoldConstantsPass):  # type: ignore[misc]
    """onnxscript's folding, with our limits, and with each node's notes handed on."""

    def __init__(self, limit_bytes: int, limit_elements: int) -> None:
        super().__init__(
            shape_inference=True,
            input_size_limit=limit_bytes,  # elements; the byte limit in `is_allowed` is tighter
            output_size_limit=limit_elements,
            should_fold=self.is_allowed,
        )
        self.limit_bytes = limit_bytes
        self.replaced = 0
        self.too_large: dict[ir.Node, int] = {}

    def is_allowed(self, node: ir.Node) -> bool | None:
        """False to leave a node alone, None for the library's own rules."""
        size = sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value)
        if size > self.limit_bytes:
            self.too_large[node] = size
            return False
        return False if is_random(node) else None

    def process_node(self, node: ir.Node, is_function: bool) -> folding.Replacement | None:
        """Look at one node; those that take attributes from a function's call are not constant."""
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        if node.op_type in SEQUENCES and self._opset_imports.get("", 1) < 13:
            return None
        return super().process_node(node, is_function)

    def replace_node(self, node: ir.Node, replacement: folding.Replacement, root: ir.Graph | ir.Function) -> None:
        """Replace one node; the new ones keep its source module."""
        carry_module(node, *replacement.new_nodes)
        self.replaced += 1
        super().replace_node(node, replacement, root)
