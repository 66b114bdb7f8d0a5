"""Where a recipe's file speaks of a gate, so that a CI system can mark that very line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from optimize import foreign_files
from optimize.report.model import Report

LARGEST = 1 << 20
"""Bytes, as for a recipe that is to be run."""


def recipe_file(report: Report) -> str:
    """The recipe as the user named it on the command line; "report.json" when it was not."""
    try:
        words = shlex.split(report.command)
    except ValueError:
        words = []
    return next((word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word), "report.json")


def gate_line(file: Path, gate: str) -> int:
    """The 1-based line of a gate in a recipe; 1 when the file is no recipe, or inherits the gate."""
    try:
        # Nodes alone: values that YAML cannot turn into numbers or dates do not matter here.
        root = YAML(typ="safe", pure=True).compose(foreign_files.content(file, LARGEST).decode("utf-8-sig"))
    except (OSError, ValueError, OverflowError, RecursionError, YAMLError):
        return 1
    return next((line for key, _, gates in _entries(root) if key == "gates" and (line := _line(gates, gate))), 1)


def _line(gates: Node, path: str) -> int | None:
    """Keys may be nested, dotted, or both: {accuracy: {cosine.min: 0.99}}."""
    for key, line, value in _entries(gates):
        if key == path:
            return line
        if path.startswith(f"{key}."):
            found = _line(value, path[len(key) + 1 :])
            if found is not None:
                return found
    return None


def _entries(node: Node | None) -> Iterator[tuple[str, int, Node]]:
    """Each key of a mapping that is text, its 1-based line, and its value; none of anything else."""
    for key, value in node.value if isinstance(node, MappingNode) else ():
        if isinstance(key, ScalarNode):
            yield str(key.value), key.start_mark.line + 1, value
