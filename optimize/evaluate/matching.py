"""Which inner values of the original and the optimised graph are the same value: by name, else by source module."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from passes.names import module_of

COMPUTE = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "Einsum", "LSTM", "GRU", "RNN")
"""Operators that carry a layer's arithmetic: what quantizing and casting passes change, and can skip."""

_NOT_FLOAT = frozenset(
    kind for kind in ir.DataType if kind != ir.DataType.UNDEFINED and not kind.is_floating_point()
)


@dataclasses.dataclass(frozen=True)
class Match:
    """The same value in two graphs.

    Attributes:
        module: The source module, or the node's name where there is none.
        original: Its name in the original graph.
        optimized: Its name in the optimised graph.
        op_type: The module's computing operator in the original graph, else the operator that makes the value.
        by_name: Whether the names are the same; else only the module is.
        after: Matches that this value is computed from, nearest first on every path, by `original` name.
        layers: Computing layers between those and this value; it shows their noise where a pass has merged them
            into it.
    """

    module: str
    original: str
    optimized: str
    op_type: str
    by_name: bool
    after: frozenset[str] = frozenset()
    layers: tuple[str, ...] = ()


def match(original: ir.Model, optimized: ir.Model) -> tuple[Match, ...]:
    """Pair what leaves each source module of `original` with the same in `optimized`, in graph order.

    A module's value is one read outside of it. It is paired with the value of the same name; where a pass has
    renamed it, with the only value that leaves the module of the same name. Nodes that no module is known of
    stand for themselves, when they compute.

    Integer and boolean values are left out: passes do not round them.
    """
    made = {output.name: output for node in optimized.graph for output in node.outputs if output.name is not None}
    there = _leaving(optimized)
    found: dict[str, Match] = {}
    for module, values in _leaving(original).items():
        for value in values:
            pair, by_name = _partner(value, values, there.get(module, ()), made)
            if pair is not None:
                op_type = _op_type(value, module)
                found[str(value.name)] = Match(module, str(value.name), str(pair.name), op_type, by_name)
    after = _nearest(original, found)
    layers = _between(original, found)
    return tuple(dataclasses.replace(item, after=after[name], layers=layers[name]) for name, item in found.items())


def _partner(
    value: ir.Value, values: Iterable[ir.Value], others: Iterable[ir.Value], made: Mapping[str, ir.Value]
) -> tuple[ir.Value | None, bool]:
    same = made.get(str(value.name))
    if same is not None and same.dtype not in _NOT_FLOAT:
        return same, True
    mine, theirs = list(values), list(others)
    return (theirs[0], False) if len(mine) == len(theirs) == 1 else (None, False)


def _leaving(model: ir.Model) -> dict[str, list[ir.Value]]:
    """Values read outside the module that makes them, per module, in graph order."""
    leaving: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        module = module_of(node)
        if not module and node.op_type not in COMPUTE:
            continue
        for output in node.outputs:
            if output.dtype in _NOT_FLOAT or not output.name:
                continue
            outside = any(module_of(reader) != module for reader, _ in output.uses())
            if outside or not module or output.is_graph_output():
                leaving.setdefault(module or str(node.name), []).append(output)
    return leaving


def _op_type(value: ir.Value, module: str) -> str:
    """The computing operator of the value's module that comes last before the value."""
    node = value.producer()
    assert node is not None
    made_by = node.op_type
    seen: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op_type in COMPUTE:
            return current.op_type
        for given in current.inputs:
            producer = given.producer() if given is not None else None
            if producer is not None and module_of(producer) == module:
                waiting.append(producer)
    return made_by


def _nearest(model: ir.Model, found: Mapping[str, Match]) -> dict[str, frozenset[str]]:
    """For every matched value, the matched values it is computed from with none in between."""
    reach: dict[str, frozenset[str]] = {}
    after: dict[str, frozenset[str]] = {}
    for node in model.graph:
        sources: frozenset[str] = frozenset().union(
            *(reach.get(str(given.name), frozenset()) for given in node.inputs if given is not None)
        )
        for output in node.outputs:
            name = str(output.name)
            if name in found:
                after[name] = sources
                reach[name] = frozenset((name,))
            else:
                reach[name] = sources
    return after


def _between(model: ir.Model, found: Mapping[str, Match]) -> dict[str, tuple[str, ...]]:
    """For every matched value, the layers that compute between the matched values before it and itself."""
    passed: dict[str, tuple[str, ...]] = {}
    layers: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        names = dict.fromkeys(
            name for given in node.inputs if given is not None for name in passed.get(str(given.name), ())
        )
        if node.op_type in COMPUTE:
            names[module_of(node) or str(node.name or "")] = None
        for output in node.outputs:
            name = str(output.name)
            if name in found:
                layers[name] = tuple(filter(None, names))
            passed[name] = () if name in found else tuple(names)
    return layers
