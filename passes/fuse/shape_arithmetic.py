"""Shape arithmetic: sums of Shape, Slice and Concat whose result is known, or that a Reshape does not need.

Before: y = Reshape(x, Concat(Shape(x)[0:1], Shape(x)[1:2], [-1], [32]))          x: (batch, tokens, 384)
After:  y = Reshape(x, [0, 0, 12, 32])

        s = Slice(Shape(x), [-1])                                                  x: (batch, tokens, 384)
        s = [384]

Exporters spell every target of a Reshape out when a dimension is dynamic. In a Reshape 0 copies the input's own
dimension and -1 stands for the one that is left, so that a constant says the same.

Leaves alone: targets with two unknown dimensions that the input does not have in the same places.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.rewriting import Rewriting, rewrite

Element = int | str | None
"""One element of a shape being computed: a number, a dimension's symbol, or unknown."""


class FuseShapeArithmetic(Pass):
    """Replace computed shapes by constants wherever the graph says what they are."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Simplify the shape arithmetic of the main graph."""
        return rewrite(model, context, ("reshape_target", "constant_shape"), _match)


def _match(rewriting: Rewriting) -> None:
    known: dict[ir.Value, tuple[Element, ...] | None] = {}
    for node in rewriting.model.graph:
        if node.domain in ("", "ai.onnx"):
            if node.op_type == "Reshape" and len(node.inputs) > 1 and not m.is_constant(node.inputs[1]):
                _reshape(rewriting, node)
            elements = _elements(node, known)
            if elements is not None:
                known[node.outputs[0]] = elements
                if all(isinstance(element, int) for element in elements):
                    _constant(rewriting, node, elements)


def _reshape(rewriting: Rewriting, node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    count = m.rank(y)
    if x is None or count is None:
        return
    target: list[int] = []
    for axis in range(count):
        size = m.dimension(y, axis)
        if isinstance(size, int):
            target.append(size)
        elif axis < (m.rank(x) or 0) and m.same_dimension(size, m.dimension(x, axis)):
            target.append(0)
        elif -1 not in target:
            target.append(-1)
        else:
            rewriting.miss("reshape_target", node, "two dimensions are neither known nor the input's own")
            return
    draft = rewriting.draft("reshape_target", node)
    name = "shape_" + "_".join("n" if size < 0 else str(size) for size in target)
    shape = draft.constant(np.array(target, np.int64), name)
    draft.replace(y, draft.op("Reshape", [x, shape]))
    rewriting.propose(draft)


def _constant(rewriting: Rewriting, node: ir.Node, elements: tuple[Element, ...]) -> None:
    """Propose a constant for a computed shape that is not one already."""
    value = node.outputs[0]
    if node.op_type in ("Constant", "Identity") or not value.uses() or value.is_graph_output():
        return
    if m.rank(value) not in (0, 1):
        return
    draft = rewriting.draft("constant_shape", node)
    array = np.array(elements, np.int64).reshape([] if m.rank(value) == 0 else [-1])
    draft.replace(value, draft.constant(array, "shape_" + "_".join(map(str, elements)).replace("-", "n")))
    rewriting.propose(draft)


def _elements(node: ir.Node, known: dict[ir.Value, tuple[Element, ...] | None]) -> tuple[Element, ...] | None:
    """The elements of a shape that `node` computes, as far as they are known, or None when it computes no shape."""

    def read(value: ir.Value | None) -> tuple[Element, ...] | None:
        return None if value is None else known.get(value)

    if node.op_type == "Shape":
        count = m.rank(node.inputs[0])
        if count is None:
            return None
        sizes = [m.dimension(node.inputs[0], axis) for axis in range(count)]
        return tuple(sizes[m.attribute(node, "start", 0) : m.attribute(node, "end", count)])
    if node.op_type in ("Identity", "Squeeze", "Unsqueeze"):
        found = read(node.inputs[0])
        return found if found is not None and len(found) == 1 else None
    if node.op_type == "Slice" and len(node.inputs) > 2:  # before opset 10 the bounds were attributes
        found, start, end = read(node.inputs[0]), m.integers(node.inputs[1]), m.integers(node.inputs[2])
        steps = m.integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
        if found is None or start is None or end is None or steps != (1,):
            return None
        return found[start[0] : end[0]]
    if node.op_type == "Gather" and m.attribute(node, "axis", 0) == 0:
        found, indices = read(node.inputs[0]), m.integers(node.inputs[1])
        if found is None or indices is None or not all(-len(found) <= index < len(found) for index in indices):
            return None
        return tuple(found[index] for index in indices)
    if node.op_type == "Concat" and any(read(value) is not None for value in node.inputs):
        parts = [read(value) if read(value) is not None else m.integers(value) for value in node.inputs]
        if any(part is None for part in parts):
            return None
        return tuple(element for part in parts if part is not None for element in part)
    return None
