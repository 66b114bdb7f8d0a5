"""Pydantic's errors as faults of a recipe: at the line, in its words, with a did-you-mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic

from optimize.recipe.faults import Faults, Path, did_you_mean, nearest
from optimize.recipe.nodes import Node, Place, describe

Model = TypeVar("Model", bound=pydantic.BaseModel)


def validate(model: type[Model], node: Node, path: Path, faults: Faults) -> Model | None:
    """The node as `model`, or None with every fault noted.

    Types are taken strictly: a text is no number and a number no text.

    Args:
        model: The class.
        node: A mapping; null counts as an empty one.
        path: The node's path.
        faults: Where faults go.
    """
    if node.value is None:
        node = Node({}, node.place)
    if not isinstance(node.value, dict):
        faults.add(path, f"expected a mapping of options, got {node.kind()}", node.place)
        return None
    try:
        return model.model_validate_json(json.dumps(node.plain()), strict=True)
    except pydantic.ValidationError as error:
        _Explainer(model, node, path, faults).explain(error)
        return None


class _Explainer:
    def __init__(self, model: type[pydantic.BaseModel], node: Node, path: Path, faults: Faults) -> None:
        self.model, self.node, self.path, self.faults = model, node, path, faults

    def explain(self, error: pydantic.ValidationError) -> None:
        """Note every error; those of the members of a union become one."""
        grouped: dict[Path, list[tuple[int, Any]]] = {}
        for item in error.errors(include_url=False):
            branch, depth = self.locate(item)
            grouped.setdefault(branch, []).append((depth, item))
        renamed = self.renamed(error)
        for items in grouped.values():
            deepest = max(depth for depth, _ in items)
            chosen = [item for depth, item in items if depth == deepest]
            own = [item for item in chosen if item["type"] not in ("missing", "extra_forbidden")]
            if len(own) > 1 and len({self.resolve(item)[0] for item in own}) == 1:
                self.add_one_of(own)
                continue
            for item in chosen:
                if item["type"] == "missing" and self.resolve(item)[0] in renamed:
                    continue
                self.add(item)

    def locate(self, item: Mapping[str, Any]) -> tuple[Path, int]:
        """Where a union branched off (or the whole location), and how deep the error lies."""
        resolved, branch = self.resolve(item)
        return (branch if branch is not None else resolved, len(resolved))

    def resolve(self, item: Mapping[str, Any]) -> tuple[Path, Path | None]:
        """A pydantic error's location as a path in the recipe; names of union members are no part of one."""
        location: tuple[str | int, ...] = item["loc"]
        node: Node | None = self.node
        path: list[str | int] = []
        branch: Path | None = None
        for index, part in enumerate(location):
            is_missing = item["type"] == "missing" and index == len(location) - 1
            below = _child(node, part)
            if below is not None:
                node = below
                path.append(part)
            elif part == "[key]":
                continue
            elif is_missing:
                path.append(part)
            elif branch is None:
                branch = tuple(path)
        return tuple(path), branch

    def renamed(self, error: pydantic.ValidationError) -> set[Path]:
        """Missing keys that were written with a slip, which is noted already as an unknown key."""
        errors = error.errors(include_url=False)
        missing = [self.resolve(item)[0] for item in errors if item["type"] == "missing"]
        found: set[Path] = set()
        for item in errors:
            if item["type"] == "extra_forbidden":
                path = self.resolve(item)[0]
                siblings = [str(other[-1]) for other in missing if other[:-1] == path[:-1]]
                near = nearest(str(path[-1]), siblings)
                if near:
                    found.add((*path[:-1], near))
        return found

    def place(self, path: Path, *, of_key: bool) -> Place:
        """Where the value at `path` stands, or its key; the nearest that exists."""
        node, place = self.node, self.node.place
        for part in path:
            below = _child(node, part)
            if below is None:
                return place
            place = node.keys.get(str(part), below.place) if of_key else below.place
            node = below
        return place

    def add(self, item: Mapping[str, Any]) -> None:
        path, _ = self.resolve(item)
        unknown = item["type"] == "extra_forbidden"
        place = self.place(path, of_key=unknown)
        if unknown:
            message = f"unknown key{did_you_mean(str(path[-1]), self.siblings(path))}"
        else:
            message = in_words(item)
        self.faults.add((*self.path, *path), message, place)

    def add_one_of(self, items: list[Any]) -> None:
        """One fault for a value that fits no member of a union."""
        path, _ = self.resolve(items[0])
        wanted = list(dict.fromkeys(_expected(item) for item in items))
        words = " or ".join(wanted)
        message = f"expected {words}, got {describe(items[0]['input'])}"
        self.faults.add((*self.path, *path), message, self.place(path, of_key=False))

    def siblings(self, path: Path) -> list[str]:
        """Names of the fields that the mapping holding `path` takes, as far as the model's types tell."""
        model: Any = self.model
        for part in path[:-1]:
            field = getattr(model, "model_fields", {}).get(part)
            model = _model_in(field.annotation) if field is not None else _model_in(model)
        return list(getattr(model, "model_fields", {}))


def _child(node: Node | None, part: str | int) -> Node | None:
    if node is None:
        return None
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, tuple) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def _model_in(annotation: Any) -> Any:
    """The first pydantic model within a type such as `dict[str, Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
}


_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def _expected(item: Mapping[str, Any]) -> str:
    """What was expected, without what was got."""
    if item["type"] in _BOUNDS:
        words, bound = _BOUNDS[item["type"]]
        return f"{words} {item['ctx'][bound]}"
    if item["type"] in _TYPES:
        return _TYPES[item["type"]]
    if item["type"] == "literal_error":
        return str(item["ctx"]["expected"])
    return str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def _literal(item: Mapping[str, Any]) -> str:
    """A fault of a value that is not among the allowed ones."""
    expected = str(item["ctx"]["expected"])
    got = item["input"]
    known = [part.strip(" '") for part in expected.replace(" or ", ", ").split(",")]
    near = nearest(got, known) if isinstance(got, str) else None
    return f"expected {expected}, got {describe(got)}" + (f"; did you mean '{near}'?" if near else "")


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda item: "missing",
    "literal_error": _literal,
    "value_error": lambda item: str(item["msg"]).removeprefix("Value error, "),
}


def in_words(item: Mapping[str, Any]) -> str:
    """One pydantic error as a sentence: both sides where there are two."""
    if item["type"] in _WORDS:
        return _WORDS[item["type"]](item)
    message = str(item["msg"])
    if item["type"] in _TYPES or message.startswith("Input should be "):
        return f"expected {_expected(item)}, got {describe(item['input'])}"
    return message[0].lower() + message[1:] + f", got {describe(item['input'])}"
