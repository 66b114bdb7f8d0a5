"""Dead code.

Before: a = Relu(x)  b = Neg(x)  → output a      (b, an initializer and a function are never used)
After:  a = Relu(x)              → output a

Leaves alone: graph inputs and outputs, used or not, and initializers that are inputs too.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import nodes, scopes


class DeadCode(Pass):
    """Remove nodes, weights, functions and opsets that nothing uses."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove what is not used."""
        nodes_before, weights_before = nodes(model), _weights(model)
        functions_before = len(model.functions)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        common.RemoveUnusedNodesPass()(model)
        for scope in scopes(model):
            if isinstance(scope, ir.Graph) and scope is not model.graph:
                _remove_unused_weights(scope)
        common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass()(model)
        return PassResult(
            patterns=(
                Pattern("node", nodes_before - nodes(model)),
                Pattern("weight", weights_before - _weights(model)),
                Pattern("function", functions_before - len(model.functions)),
            )
        )


def _weights(model: ir.Model) -> int:
    return sum(len(scope.initializers) for scope in scopes(model) if isinstance(scope, ir.Graph))


def _remove_unused_weights(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
