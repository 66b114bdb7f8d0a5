"""Outputs that nobody needs, taken off the graph.

Before: y, hidden = Model(x)     with drop_outputs: {names: [hidden]}
After:  y = Model(x)             and what only `hidden` needed becomes dead code

Only ever on request: it changes what the model gives. Graph inputs stay, needed or not.

Leaves alone: every output that is not named.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import onnx_ir as ir
import pydantic
from onnx_ir.passes import common

from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern


class DropOutputs(Pass):
    """Take named outputs off the graph, with all that only they needed."""

    names: tuple[str, ...] = pydantic.Field(
        min_length=1, description="Outputs to drop, by name or shell-style pattern."
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Drop the outputs; names that are gone already do no harm.

        Raises:
            PassFailed: When no output would be left.
        """
        kept = [value for value in model.graph.outputs if not self._drops(value)]
        dropped = len(model.graph.outputs) - len(kept)
        if not kept:
            names = ", ".join(str(value.name) for value in model.graph.outputs)
            raise PassFailed(f"drop_outputs: no output would be left of {names}. Keep at least one.")
        if dropped:
            model.graph.outputs[:] = kept
            common.RemoveUnusedNodesPass()(model)
        return PassResult(patterns=(Pattern("output", dropped),))

    def _drops(self, value: ir.Value) -> bool:
        return any(fnmatchcase(str(value.name), pattern) for pattern in self.names)
