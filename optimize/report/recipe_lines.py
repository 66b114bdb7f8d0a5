"""Where a recipe's file speaks of a gate, so that a CI system can mark that very line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from optimize.report.model import Report


def recipe_file(report: Report) -> str:
    """The recipe as the user named it on the command line; "report.json" when it was not."""
    try:
        words = shlex.split(report.command)
    except ValueError:
        words = []
    return next((word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word), "report.json")


def gate_line(file: Path, gate: str) -> int:
    """The 1-based line of a gate in a recipe; 1 when the file is not there, or inherits the gate."""
    try:
        data = YAML(typ="rt", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return 1
    gates = data.get("gates") if isinstance(data, dict) else None
    return _line(gates, gate) or 1


def _line(gates: Any, path: str) -> int | None:
    """Keys may be nested, dotted, or both: {accuracy: {cosine.min: 0.99}}."""
    if not isinstance(gates, dict):
        return None
    for key, value in gates.items():
        if key == path:
            return int(gates.lc.key(key)[0]) + 1  # type: ignore[attr-defined]
        if path.startswith(f"{key}."):
            line = _line(value, path[len(str(key)) + 1 :])
            if line is not None:
                return line
    return None
