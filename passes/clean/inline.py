"""Local functions, written out where they are called.

Before: y = my.domain.Block(x)   with the model's own function Block(a) { b = Relu(a)  c = Neg(b) }
After:  b = Relu(x)  y = Neg(b)

The other passes match on standard operators and do not look into functions.

Leaves alone: operators of other domains that the model does not define.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern
from passes.clean._scopes import scopes
from passes.names import carry_module


class Inline(Pass):
    """Write out the model's local functions where they are called."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Inline every call.

        Raises:
            PassFailed: When functions call each other in a circle.
        """
        if not model.functions:
            return PassResult(patterns=(Pattern("call", 0),))
        calls = _calls(model)
        try:
            common.InlinePass()(model)
        except (ir.passes.PassError, ir.passes.PreconditionError) as error:
            raise PassFailed(
                f"inline: {error.__cause__ or error}. Break the circle in the source model."
            ) from error
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass()(model)
        common.NameFixPass()(model)
        return PassResult(patterns=(Pattern("call", calls),))


def _calls(model: ir.Model) -> int:
    found = [node for scope in scopes(model) for node in scope if node.op_identifier() in model.functions]
    for call in found:
        for node in model.functions[call.op_identifier()]:
            carry_module(call, node)
    return len(found)
