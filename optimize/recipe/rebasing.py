"""Paths: each starts from the folder of the file that says it, and is written to start from one base."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from optimize.engines.base import PATH_OR_NAME
from optimize.recipe.nodes import Node

FORMATS = ("path", "path-or-name", "path-or-function", "file-path", "directory-path")


def rebase(model: type[pydantic.BaseModel], node: Node, base: Path) -> Node:
    """The mapping with every path that the model's fields mark as one made to start from `base`.

    A field is marked by its type (`pathlib.Path`) or by `json_schema_extra={"format": "path"}`; with the format
    "path-or-name" a text without "/" stays as it is.
    """
    if not isinstance(node.value, dict):
        return node
    entries = dict(node.value)
    for name, item in node.value.items():
        field = model.model_fields.get(name)
        if field is not None and is_path(field):
            entries[name] = _rebased(item, base, names=_format(field) == PATH_OR_NAME["format"])
    return Node(entries, node.place, node.keys)


def is_path(field: FieldInfo) -> bool:
    """Whether a field holds a path, or a list of them."""
    return _format(field) in FORMATS or _holds_path(field.annotation)


def _format(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    return extra.get("format") if isinstance(extra, dict) else None


def _holds_path(annotation: Any) -> bool:
    if isinstance(annotation, type):
        return issubclass(annotation, Path)
    return any(_holds_path(argument) for argument in typing.get_args(annotation))


def _rebased(node: Node, base: Path, *, names: bool) -> Node:
    if isinstance(node.value, tuple):
        return Node(tuple(_rebased(item, base, names=names) for item in node.value), node.place)
    if not isinstance(node.value, str) or (names and "/" not in node.value):
        return node
    return Node(moved(node.value, node.place.folder, base), node.place)


def moved(text: str, folder: Path, base: Path) -> str:
    """A path that starts from `folder`, or a reference such as "file.py:function", starting from `base`."""
    path, colon, function = text.rpartition(":")
    if not colon:
        path, function = text, ""
    is_module = bool(colon) and not path.endswith(".py")
    here, there = os.path.abspath(folder), os.path.abspath(base)
    if text == "random" or is_module or os.path.isabs(path) or here == there:
        return text
    return Path(os.path.relpath(os.path.join(here, path), there)).as_posix() + colon + function
