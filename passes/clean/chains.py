"""Two operators in a row that are one.

Before: a = Reshape(x, s)     y = Reshape(a, t)             a = Transpose(x, [0, 2, 1])  y = Transpose(a, [1, 0, 2])
After:  y = Reshape(x, t)                                   y = Transpose(x, [2, 0, 1])

Before: a = Unsqueeze(x, k)   y = Squeeze(a, k)             a = Cast(x, float32)         y = Cast(a, float16)
After:  y = x                                               y = x, for x : float16

Before a Reshape, Flatten, Squeeze and Unsqueeze go too.

Leaves alone: a Reshape whose target holds a 0 ("as in the input", which would be another input), axes and
targets that are not constant, and Casts through a type that does not hold every value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import onnx_ir as ir

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import scopes
from passes.clean.no_ops import constant

TYPE = ir.DataType
HOLDS: Mapping[ir.DataType, tuple[ir.DataType, ...]] = {
    TYPE.FLOAT16: (TYPE.FLOAT, TYPE.DOUBLE),
    TYPE.BFLOAT16: (TYPE.FLOAT, TYPE.DOUBLE),
    TYPE.FLOAT: (TYPE.DOUBLE,),
    TYPE.INT8: (TYPE.INT16, TYPE.INT32, TYPE.INT64, TYPE.FLOAT16, TYPE.FLOAT, TYPE.DOUBLE),
    TYPE.UINT8: (TYPE.INT16, TYPE.INT32, TYPE.INT64, TYPE.FLOAT16, TYPE.FLOAT, TYPE.DOUBLE),
    TYPE.INT32: (TYPE.INT64, TYPE.DOUBLE),
    TYPE.BOOL: (TYPE.UINT8, TYPE.INT8, TYPE.INT32, TYPE.INT64, TYPE.FLOAT16, TYPE.FLOAT, TYPE.DOUBLE),
}
"""Types that hold every value of the key's type, so that there and back is the same."""

RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class Chains(Pass):
    """Make two layout or type changes in a row one."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Shorten the chains of every graph."""
        found: Counter[str] = Counter()
        for scope in scopes(model):
            for node in scope:
                shorten = _SHORTEN.get(node.op_type) if node.domain in ("", "ai.onnx") else None
                while shorten is not None and _shorten(node, shorten):
                    found[node.op_type] += 1
        return PassResult(patterns=tuple(Pattern(kind, found[kind]) for kind in _SHORTEN))


def _shorten(node: ir.Node, shorten: Callable[[ir.Node, ir.Node], bool]) -> bool:
    """Try to take out the operator before `node`."""
    value = node.inputs[0] if node.inputs else None
    inner = value.producer() if value is not None else None
    if value is None or inner is None or inner.domain not in ("", "ai.onnx") or inner.inputs[:1] in ((), (None,)):
        return False
    if not shorten(inner, node):
        return False
    if not value.uses() and not value.is_graph_output() and inner.graph is not None:
        inner.graph.remove(inner, safe=True)
    return True


def _reshape(inner: ir.Node, outer: ir.Node) -> bool:
    target = constant(outer.inputs[1]) if len(outer.inputs) > 1 else None
    if inner.op_type not in RESHAPING or target is None:
        return False
    if (target == 0).any() and not outer.attributes.get_int("allowzero", 0):
        return False
    outer.replace_input_with(0, inner.inputs[0])
    return True


def _transpose(inner: ir.Node, outer: ir.Node) -> bool:
    first, second = inner.attributes.get_ints("perm", ()), outer.attributes.get_ints("perm", ())
    if inner.op_type != "Transpose" or not first or not second:
        return False
    outer.attributes["perm"] = ir.AttrInt64s("perm", [first[axis] for axis in second])
    outer.replace_input_with(0, inner.inputs[0])
    return True


def _squeeze(inner: ir.Node, outer: ir.Node) -> bool:
    """Squeeze after Unsqueeze of the same axes: an Identity, for `no_ops` to remove."""
    if inner.op_type != "Unsqueeze" or len(inner.inputs) < 2 or len(outer.inputs) < 2:
        return False
    added, taken = constant(inner.inputs[1]), constant(outer.inputs[1])
    if added is None or taken is None or sorted(added.tolist()) != sorted(taken.tolist()):
        return False
    return _become_identity(outer, inner.inputs[0])


def _cast(inner: ir.Node, outer: ir.Node) -> bool:
    """Cast back from a wider type: an Identity, for `no_ops` to remove."""
    source = inner.inputs[0]
    if inner.op_type != "Cast" or source is None or source.dtype is None:
        return False
    through, to = inner.attributes.get_int("to", 0), outer.attributes.get_int("to", 0)
    if to != source.dtype or through not in HOLDS.get(source.dtype, ()):
        return False
    return _become_identity(outer, source)


def _become_identity(node: ir.Node, source: ir.Value | None) -> bool:
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    node.replace_input_with(0, source)
    return True


_SHORTEN: Mapping[str, Callable[[ir.Node, ir.Node], bool]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Cast": _cast,
}
