"""`gates:`: limits by name, written flat (`accuracy.cosine.min: 0.99`) or nested, to one flat mapping."""

from __future__ import annotations

from optimize.figures import FIGURES, parse_limit, split_gate, unreachable
from optimize.recipe.faults import Faults, did_you_mean
from optimize.recipe.nodes import Node, Place

GATES = "gates"
BOUNDS = ("min", "max")


def flatten(node: Node, faults: Faults) -> Node:
    """Nested gates as dotted keys, so that a recipe may override a limit however its base wrote it."""
    if not isinstance(node.value, dict):
        return node
    entries: dict[str, Node] = {}
    keys: dict[str, Place] = {}

    def walk(below: Node, prefix: str) -> None:
        for key, item in below.mapping.items():
            name = f"{prefix}.{key}" if prefix else key
            if isinstance(item.value, dict) and item.value:
                walk(item, name)
            elif name in entries:
                message = f"written twice; first on line {keys[name].line}"
                faults.add((GATES, name), message, below.keys[key])
            else:
                entries[name], keys[name] = item, below.keys[key]

    walk(node, "")
    return Node(entries, node.place, keys)


def read_gates(node: Node | None, faults: Faults) -> dict[str, float]:
    """Limits in each figure's own unit; a null takes a gate of an extended recipe away."""
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        faults.add((GATES,), f"expected a mapping of gates, got {node.kind()}", node.place)
        return {}
    limits: dict[str, float] = {}
    for name, item in node.value.items():
        path = (GATES, name)
        try:
            figure, bound, facts = split_gate(name)
        except ValueError as error:
            faults.add(path, f"{error}{_suggestion(name)}", node.keys[name])
            continue
        if item.value is None:
            continue
        if isinstance(item.value, bool) or not isinstance(item.value, str | int | float):
            faults.add(path, f"expected a limit, got {item.kind()}", item.place)
            continue
        try:
            limits[name] = parse_limit(item.value, facts.unit)
        except ValueError as error:
            faults.add(path, str(error), item.place)
            continue
        if why := unreachable(name, limits[name]):
            faults.add(path, why, item.place)
        if bound == "max" and limits[name] < limits.get(f"{figure}.min", limits[name]):
            faults.add(path, f"below {figure}.min, so that no run can pass", item.place)
    return limits


def _suggestion(name: str) -> str:
    """The nearest gate: the figure's nearest name, with the bound kept where one was written."""
    stem, _, bound = name.rpartition(".")
    if bound in BOUNDS:
        return did_you_mean(name, [f"{figure}.{bound}" for figure in FIGURES])
    if name in FIGURES or stem in ("metric", "drop"):
        return f"; did you mean '{name}.min' or '{name}.max'?"
    return did_you_mean(name, [f"{figure}.{each}" for figure in FIGURES for each in BOUNDS])
