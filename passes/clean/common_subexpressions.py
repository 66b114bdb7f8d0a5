"""Common subexpressions.

Before: a = Relu(x)  b = Relu(x)  y = Add(a, b)
After:  a = Relu(x)               y = Add(a, a)

Equal small constants become one first, so that what reads them can be equal. A sub-graph may take a value
that its surrounding graph has computed already.

Leaves alone: random operators, operators of unknown domains (they may keep state), operators that hold
sub-graphs, constants above `limit_elements`, and nodes whose result is a graph output, whose name must stay.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from typing import Any

import onnx_ir as ir
import pydantic
from onnx_ir.passes import common

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import Scope, is_random, outermost, scopes

PURE_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


class CommonSubexpressions(Pass):
    """Compute equal expressions once."""

    limit_elements: int = pydantic.Field(
        default=1024, ge=0, description="Most elements of a constant that is compared by value."
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Merge equal nodes and equal small constants."""
        before = _weights(model)
        common.DeduplicateInitializersPass(size_limit=self.limit_elements)(model)
        merged = 0
        for outer in outermost(model):
            merged += self._merge(outer, ChainMap(), _impure_functions(model))
        return PassResult(patterns=(Pattern("node", merged), Pattern("constant", before - _weights(model))))

    def _merge(
        self, scope: Scope, seen: ChainMap[Hashable, ir.Node], impure: frozenset[ir.OperatorIdentifier]
    ) -> int:
        merged = 0
        outputs = frozenset(scope.outputs)
        for node in scope:
            inner = [graph for attribute in node.attributes.values() for graph in _graphs(attribute)]
            for graph in inner:
                merged += self._merge(graph, seen.new_child(), impure)
            key = None if inner else self._key(node, impure)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is node or any(output in outputs for output in node.outputs):
                continue
            ir.convenience.replace_all_uses_with(node.outputs, first.outputs)
            scope.remove(node, safe=True)
            merged += 1
        return merged

    def _key(self, node: ir.Node, impure: frozenset[ir.OperatorIdentifier]) -> Hashable | None:
        """What makes two nodes equal, or None when a node is like no other."""
        identifier = node.op_identifier()
        if node.domain not in PURE_DOMAINS or is_random(node) or identifier in impure:
            return None
        attributes = []
        for name, attribute in sorted(node.attributes.items()):
            value = self._attribute(attribute)
            if value is None:
                return None
            attributes.append((name, attribute.type, value))
        used = tuple(bool(output.name) for output in node.outputs)
        return identifier, used, tuple(node.inputs), tuple(attributes)

    def _attribute(self, attribute: ir.Attr) -> Hashable | None:
        """An attribute's value as something to compare; None when it cannot be."""
        kinds = ir.AttributeType
        if attribute.is_ref():
            return ("reference", attribute.ref_attr_name)
        if attribute.type in (kinds.FLOAT, kinds.FLOATS):
            return repr(attribute.value)  # keeps 0.0 and -0.0 apart
        if attribute.type in (kinds.INT, kinds.STRING):
            return (attribute.value,)
        if attribute.type in (kinds.INTS, kinds.STRINGS):
            return tuple(attribute.value)
        if attribute.type == kinds.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.size > self.limit_elements or tensor.dtype == ir.DataType.STRING:
                return None
            return (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        return None


def _weights(model: ir.Model) -> int:
    return sum(len(scope.initializers) for scope in scopes(model) if isinstance(scope, ir.Graph))


def _graphs(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    value: Any = None if attribute.is_ref() else attribute.value
    if attribute.type == ir.AttributeType.GRAPH:
        return (value,)
    return tuple(value) if attribute.type == ir.AttributeType.GRAPHS else ()


def _impure_functions(model: ir.Model) -> frozenset[ir.OperatorIdentifier]:
    """Functions in whose body, or in what they call, something is random or unknown."""
    impure: set[ir.OperatorIdentifier] = set()
    grew = True
    while grew:
        grew = False
        for identifier, function in model.functions.items():
            if identifier not in impure and any(
                is_random(node) or node.op_identifier() in impure for node in function.all_nodes()
            ):
                impure.add(identifier)
                grew = True
    return frozenset(impure)
