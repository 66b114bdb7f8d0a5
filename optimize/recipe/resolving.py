"""The resolved recipe: everything explicit, in one file that runs again to the same artifacts."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from optimize.recipe.merging import NAMED_IN
from optimize.recipe.model import Recipe
from optimize.recipe.variables import escaped

HEADER = "# The recipe as it ran: bases merged, variables replaced, every default written out.\n"

BASE_FILE = "recipe.base"
"""Lies beside a resolved recipe and names, in one line, the folder that its paths start from."""


def resolve(recipe: Recipe, *, beside: Path | None = None) -> str:
    """The recipe as YAML text with every default written out.

    Its `base:` names the folder that relative paths start from, so that they need no rewriting and the file
    names no machine. After moving the file only that line needs mending.

    Args:
        recipe: A recipe as loaded.
        beside: The folder that the text will be written to; `base:` is written relative to it. Without it the
            text is the same wherever it will lie: `base:` points to a file `recipe.base` beside it.
    """
    data: dict[str, Any] = {"schema_version": recipe.schema_version, "name": recipe.name}
    data["base"] = _named_in_file() if beside is None else base_from(recipe, beside)
    for key, value in recipe.model_dump(mode="json").items():
        if key == "passes":
            value = [{item["name"]: item["options"]} for item in value]
        data.setdefault(key, value)
    yaml = YAML(typ="rt")
    yaml.width = 100
    yaml.default_flow_style = False
    yaml.representer.add_representer(type(None), _represent_null)
    text = io.StringIO()
    yaml.dump(_escaped(data), text)
    return HEADER + text.getvalue()


def base_from(recipe: Recipe, folder: Path) -> str:
    """The recipe's base as a path that starts from `folder`."""
    return Path(os.path.relpath(recipe.base, folder)).as_posix()


def _named_in_file() -> CommentedMap:
    named = CommentedMap({NAMED_IN: BASE_FILE})
    named.fa.set_flow_style()  # one line, so that a script can replace it
    return named


def _represent_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _escaped(value: Any) -> Any:
    if isinstance(value, CommentedMap):
        return value
    if isinstance(value, dict):
        return {_quoted(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return _quoted(escaped(value)) if isinstance(value, str) else value


def _quoted(text: str) -> str:
    """Text with control characters or Unicode's own line ends, which only double quotes keep."""
    return text if text.isprintable() else DoubleQuotedScalarString(text)
