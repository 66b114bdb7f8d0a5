"""Which proposed rewrites are alike, so that checking one of them says something about all.

Two drafts are alike when their old and new sub-graphs have the same operators, attributes and wiring; when
what they read has the same types and the same known dimensions (number or symbol); and when constants of up
to `SMALL` elements hold the same numbers. Inputs that are no activations (masks, shapes, indices) must come
from the same graph inputs and constants by the same operators, so that they hold the same numbers too.

What may differ is the numbers of larger weights. Both sides read those as they are: a draft that computed a
larger constant of its own (a folded batch norm, merged weights) is alike to none. Neither is one that reads
a value of unknown dimensions, or whose old side is too large to be cut out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import onnx_ir as ir

from passes.cut import Cut, has_subgraph, weight
from passes.draft import Draft

SMALL = 64
"""Constants up to this many elements are compared by their numbers."""

MIXING = frozenset(
    (
        "Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "GroupNormalization", "InstanceNormalization",
        "LayerNormalization", "MatMul", "RMSNormalization", "SimplifiedLayerNormalization",
    )
)  # fmt: skip
"""Operators that make activations: what they give depends on data and weights throughout, and is no mask."""


def alike(model: ir.Model, drafts: Sequence[Draft], cuts: Sequence[Cut]) -> tuple[tuple[int, ...], ...]:
    """Group drafts, as positions in `drafts`; every draft is in one group, in order."""
    origins = Origins(model)
    groups: dict[Hashable, list[int]] = {}
    for position, (draft, cut) in enumerate(zip(drafts, cuts, strict=True)):
        groups.setdefault(_key(position, draft, cut, origins), []).append(position)
    return tuple(tuple(group) for group in groups.values())


class Origins:
    """Where a model's values come from, as numbers that are equal for values made in the same way."""

    def __init__(self, model: ir.Model) -> None:
        """Go through the main graph once."""
        self._numbers: dict[Hashable, int] = {}
        self._of: dict[ir.Value, int] = {}
        self._activations: set[ir.Value] = set()
        self._constants: dict[ir.Value, Hashable] = {}
        for node in model.graph:
            measured = _sizes(node.inputs[0]) if node.op_type == "Shape" and node.inputs else None
            if measured is None and (
                node.op_type in MIXING or any(value in self._activations for value in node.inputs)
            ):
                self._activations.update(node.outputs)
                continue
            inputs = (measured,) if measured is not None else tuple(map(self.of, node.inputs))
            key = (_operator(node), inputs)
            for index, output in enumerate(node.outputs):
                self._of[output] = self._number((key, index))

    def of(self, value: ir.Value | None) -> int:
        """The number of a value's origin."""
        if value is None:
            return -1
        found = self._of.get(value)
        if found is None:
            tensor = weight(value)
            found = self._of[value] = self._number(id(value) if tensor is None else self.constant(value, tensor))
        return found

    def constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> Hashable:
        """A constant's numbers when it is small, else itself."""
        if value not in self._constants:
            self._constants[value] = _content(tensor) if tensor.size <= SMALL else id(value)
        return self._constants[value]

    def describe(self, value: ir.Value) -> Hashable:
        """What must be equal in two values that alike drafts read."""
        if value not in self._activations:
            return ("same", self.of(value))
        sizes = _sizes(value)
        if sizes is None or value.dtype is None or not value.dtype.is_floating_point():
            return ("alone", id(value))
        return (value.dtype, sizes)

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _key(position: int, draft: Draft, cut: Cut, origins: Origins) -> Hashable:
    if cut.nodes is None:
        return position
    numbers: dict[ir.Value, int] = {}
    parts: list[Hashable] = [draft.pattern]
    own = set(draft.constants)

    def number(value: ir.Value | None) -> int:
        """The value's number within this draft; a constant is described where it is met first."""
        if value is None:
            return -1
        if value not in numbers:
            tensor = weight(value)
            if tensor is None:
                parts.append(id(value))
            elif tensor.size <= SMALL:
                parts.append(origins.constant(value, tensor))
            else:
                parts.append(id(value) if value in own else (tensor.dtype, tuple(tensor.shape.numpy())))
            numbers[value] = len(numbers)
        return numbers[value]

    for value in cut.sources:
        numbers[value] = len(numbers)
        parts.append((origins.describe(value), value in cut.boundary))
    for nodes in (cut.nodes, draft.nodes):
        for node in nodes:
            parts.append((_operator(node), tuple(map(number, node.inputs))))
            for output in node.outputs:
                numbers.setdefault(output, len(numbers))
    parts.append(tuple((number(old), number(new)) for old, new in draft.replacements.items()))
    return tuple(parts)


def _operator(node: ir.Node) -> Hashable:
    if has_subgraph(node):
        return id(node)
    attributes = tuple(
        (name, found.ref_attr_name or _attribute(found)) for name, found in sorted(node.attributes.items())
    )
    return (node.domain, node.op_type, node.overload, attributes, len(node.outputs))


def _attribute(found: ir.Attr) -> Hashable:
    if found.type == ir.AttributeType.TENSOR:
        return _content(found.value) if found.value.size <= SMALL else id(found.value)
    if isinstance(found.value, (str, bytes, int, float)):
        return found.value
    return repr(found.value)


def _content(tensor: ir.TensorProtocol) -> Hashable:
    return (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())


def _sizes(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """A value's dimensions when all of them are numbers or symbols, else None."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return None if None in sizes else sizes  # type: ignore[return-value]
