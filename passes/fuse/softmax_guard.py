"""Softmax guard: the zero that replaces NaN behind a softmax, where no NaN can come.

Before: p = Softmax(s), y = Where(IsNaN(p), 0, p)
After:  y = Softmax(s)

Exporters add the guard for rows that are masked throughout by minus infinity. It is not needed where every
mask added to the scores is finite. Scores that overflow to infinity are then NaN instead of 0, as in the
model's own source.

Leaves alone: masks that may be minus infinity, or whose values cannot be read from the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.fuse._mask import finite_scores
from passes.rewriting import Rewriting, rewrite


class FuseSoftmaxGuard(Pass):
    """Remove the NaN guard behind a Softmax where the mask proves that it never acts."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove every guard of the main graph that is proven idle."""
        return rewrite(model, context, ("softmax_guard",), _match)


def _match(rewriting: Rewriting) -> None:
    for where in rewriting.nodes("Where"):
        nan = m.made_by(where.inputs[0], "IsNaN")
        softmax = m.made_by(where.inputs[2], "Softmax")
        if nan is None or softmax is None or nan.inputs[0] is not softmax.outputs[0]:
            continue
        if m.scalar(where.inputs[1]) != 0:
            rewriting.miss("softmax_guard", where, f"NaN becomes {m.scalar(where.inputs[1])}, needs 0")
            continue
        if not finite_scores(softmax.inputs[0]):
            rewriting.miss("softmax_guard", where, "the mask may be minus infinity, needs finite values")
            continue
        draft = rewriting.draft("softmax_guard", where)
        draft.replace(where.outputs[0], softmax.outputs[0])
        rewriting.propose(draft)
