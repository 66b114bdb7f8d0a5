"""Unique names.

Before: an inner value is called "embedding", as the graph output is   (ONNX Runtime: "Duplicate definition")
After:  the output keeps "embedding", the inner value becomes "embedding_1"

Names are unique over the whole model, sub-graphs included; nameless nodes and values get one. Node names
too, because reports, skips and other passes name places by them.

Leaves alone: names of graph inputs and outputs, which belong to the user.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern
from passes.clean._scopes import scopes


class UniqueNames(Pass):
    """Give every value and node a name of its own; inputs and outputs keep theirs."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rename what clashes.

        Raises:
            PassFailed: When two graph inputs or outputs share one name, which no renaming can mend.
        """
        _check_signature(model)
        values_before = _names(model)
        nodes_before = [node.name for scope in scopes(model) for node in scope]
        common.NameFixPass()(model)
        values = sum(old != new for old, new in zip(values_before.values(), _names(model).values(), strict=True))
        nodes = sum(
            old != new
            for old, new in zip(nodes_before, [node.name for scope in scopes(model) for node in scope], strict=True)
        )
        return PassResult(patterns=(Pattern("value", values), Pattern("node", nodes)))


def _check_signature(model: ir.Model) -> None:
    for kind, values in (("inputs", model.graph.inputs), ("outputs", model.graph.outputs)):
        seen: dict[str, ir.Value] = {}
        for value in values:
            name = value.name or ""
            if seen.setdefault(name, value) is not value:
                raise PassFailed(f"names: two graph {kind} are called '{name}'. Rename one in the source model.")


def _names(model: ir.Model) -> dict[ir.Value, str | None]:
    found: dict[ir.Value, str | None] = {}
    for scope in scopes(model):
        found.update((value, value.name) for value in scope.inputs)
        if isinstance(scope, ir.Graph):
            found.update((value, value.name) for value in scope.initializers.values())
        for node in scope:
            found.update((value, value.name) for value in node.outputs)
    return found
