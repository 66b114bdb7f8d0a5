"""Types and shapes of inner values, inferred.

Before: h = MatMul(x, w)                                 (no shape known)
After:  h = MatMul(x, w) : float32 (batch, tokens, 384)

Large weights take no part: their values are not read, only shapes are.

Leaves alone: the declared shapes of graph inputs and outputs, and any dimension that is known already; an
inferred number or name only fills in an unknown, also where the two contradict.
"""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import _c_api_utils

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import Scope, scopes


class InferShapes(Pass):
    """Infer the type and shape of every inner value."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Infer, and keep whatever was known better before."""
        order = list(model.graph.initializers)
        infer = functools.partial(onnx.shape_inference.infer_shapes, check_type=False, data_prop=True)
        try:
            # onnx_ir's own inference pass makes tensors of sequences; this is the call inside it, which leaves
            # large weights out of what it hands over
            inferred = ir.from_proto(_c_api_utils.call_onnx_api(infer, model))
        except onnx.shape_inference.InferenceError as error:
            note = f"Shapes could not be inferred and stay as they were: {' '.join(str(error).split())[:200]}."
            return PassResult(patterns=(Pattern("value", 0),), notes=(note,))
        finally:
            _restore_order(model.graph, order)
        signature = {value for value in (*model.graph.inputs, *model.graph.outputs) if value.shape is not None}
        learned = unknown = 0
        for scope, found in zip(scopes(model), scopes(inferred), strict=True):
            by_name = {value.name: value for value in _values(found)}
            for value in _values(scope):
                if value.name in by_name and value not in signature:
                    learned += _fill_in(value, by_name[value.name])
                unknown += _unknowns(value.shape) > 0
        return PassResult(patterns=(Pattern("value", learned),), figures={"values without a full shape": unknown})


def _values(scope: Scope) -> list[ir.Value]:
    return [*scope.inputs, *(value for node in scope for value in node.outputs if value.name)]


def _restore_order(graph: ir.Graph, order: list[str]) -> None:
    """Put initializers back in the order they stood; inference takes the large ones out and back in."""
    for name in order:
        graph.initializers[name] = graph.initializers.pop(name)


def _fill_in(value: ir.Value, found: ir.Value) -> bool:
    """Take over what was inferred where nothing was known; whether that taught anything."""
    before = _unknowns(value.shape)
    if value.type is None:
        value.type = found.type
    if value.shape is None:
        value.shape = found.shape
    elif found.shape is not None and len(value.shape) == len(found.shape):
        value.shape = ir.Shape([_merge(old, new) for old, new in zip(value.shape, found.shape, strict=True)])
    return before > _unknowns(value.shape)


def _merge(old: int | ir.SymbolicDim, new: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """A number beats a name, a name beats nothing; of two equals the older stays."""
    is_known = isinstance(old, int) or (old.value is not None and not isinstance(new, int))
    return old if is_known else new


def _unknowns(shape: ir.Shape | None) -> float:
    """How many dimensions are without number and name; a missing shape has more than any."""
    if shape is None:
        return float("inf")
    return sum(not isinstance(dim, int) and dim.value is None for dim in shape)
