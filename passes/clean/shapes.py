"""Types and shapes of inner values, inferred.

Before: h = MatMul(x, w)                                 (no shape known)
After:  h = MatMul(x, w) : float32 (batch, tokens, 384)

Large weights take no part: their values are not read, only shapes are.

Leaves alone: the declared shapes of graph inputs and outputs, and any dimension that is known already; an
inferred number or name only fills in an unknown, also where the two contradict.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import scopes

Known = tuple[ir.Shape | None, ir.TypeProtocol | None]


class InferShapes(Pass):
    """Infer the type and shape of every inner value."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Infer, and keep whatever was known better before."""
        before = {value: (value.shape, value.type) for value in _values(model)}
        signature = {*model.graph.inputs, *model.graph.outputs}
        order = list(model.graph.initializers)
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        _restore_order(model.graph, order)

        learned = 0
        for value, known in before.items():
            if value in signature and known[0] is not None:
                value.shape, value.type = known
                continue
            _keep_known(value, known)
            learned += _unknowns(known[0]) > _unknowns(value.shape)
        unknown = sum(_unknowns(value.shape) > 0 for value in before)
        return PassResult(patterns=(Pattern("value", learned),), figures={"values without a full shape": unknown})


def _values(model: ir.Model) -> list[ir.Value]:
    found: list[ir.Value] = []
    for scope in scopes(model):
        found.extend(scope.inputs)
        for node in scope:
            found += [value for value in node.outputs if value.name]
    return found


def _restore_order(graph: ir.Graph, order: list[str]) -> None:
    """Put initializers back in the order they stood; inference takes the large ones out and back in."""
    for name in order:
        value = graph.initializers.pop(name)
        graph.register_initializer(value)


def _keep_known(value: ir.Value, known: Known) -> None:
    """Fill in what was inferred where nothing was known."""
    shape, kind = known
    if kind is not None:
        value.type = kind
    inferred = value.shape
    if shape is None or inferred is None or len(shape) != len(inferred):
        value.shape = inferred if shape is None else shape
    else:
        value.shape = ir.Shape([_merge(old, new) for old, new in zip(shape, inferred, strict=True)])


def _merge(old: int | ir.SymbolicDim, new: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """A number beats a name, a name beats nothing; of two equals the older stays."""
    if isinstance(old, int) or (
        isinstance(old, ir.SymbolicDim) and old.value is not None and not isinstance(new, int)
    ):
        return old
    return new


def _unknowns(shape: ir.Shape | None) -> float:
    """How many dimensions are without number and name; a missing shape has more than any."""
    if shape is None:
        return float("inf")
    return sum(not isinstance(dim, int) and dim.value is None for dim in shape)
