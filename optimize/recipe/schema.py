"""The JSON Schema of recipe files: every key, every pass's options, every engine's, every gate.

Made for editors: it completes names and explains them. It accepts a little more than the reader does, which
also checks what a schema cannot say (paths, targets and engines that fit, gates on figures that are measured).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pydantic

from optimize.figures import FIGURES
from optimize.recipe.model import DataSpec, EvaluateSpec, Heading
from optimize.recipe.reading import SOURCES

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

VARIABLE: Schema = {
    "type": "string",
    "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$",
    "description": "A variable's value.",
}
_REFERENCE: Schema = {"$ref": "#/$defs/variable"}


def json_schema() -> Schema:
    """The schema, in draft 2020-12; the same for the same installed passes.

    A recipe that extends another may leave out whatever the other says, so nothing is required of it.
    """
    definitions: Schema = {"variable": VARIABLE}
    heading = _model(Heading, "heading", definitions)
    properties: Schema = {
        **heading["properties"],
        "extends": {
            "description": "Recipes that this one is laid over, by file name.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        },
        "base": {
            "description": "Folder that relative paths here start from, or a file beside this one that names it.",
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"file": {"type": "string"}},
                    "required": ["file"],
                    "additionalProperties": False,
                },
            ],
        },
        "variables": {"type": "object", "description": "Values for ${name}; --set name=value wins."},
        "source": _kinds(SOURCES, "source", definitions),
        "target": {"description": "The device to optimise for.", "enum": list(_targets())},
        "passes": _passes(definitions),
        "engine": _engines(definitions),
        "calibration": _nullable(_model(DataSpec, "calibration", definitions)),
        "evaluate": _model(EvaluateSpec, "evaluate", definitions),
        "gates": _gates(),
    }
    whole = _with_variables({"type": "object", "additionalProperties": False, "properties": properties})
    definitions = {
        name: _with_variables(item) if name != "variable" else item for name, item in definitions.items()
    }
    partial = _without_required(whole)
    return {
        "$schema": DIALECT,
        "title": "Recipe",
        "description": "One run of optimize as data.",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": partial,
        "else": whole,
        "$defs": {
            **definitions,
            **{f"partial {name}": _without_required(item) for name, item in definitions.items()},
        },
    }


def _targets() -> tuple[str, ...]:
    from optimize.targets import loading

    return loading.names()


def _passes(definitions: Schema) -> Schema:
    from passes import registry

    options = {}
    for name in registry.names():
        found = registry.find(name)
        schema = _model(found, name, definitions)
        summary = (found.__doc__ or "").strip().partition("\n")[0]
        options[name] = {**_nullable(schema), "description": summary}
    names = [*_rooms(), *options]
    return {
        "description": "Graph passes, in order: a name, or a name with its options.",
        "type": "array",
        "items": {
            "anyOf": [
                {"enum": names},
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "properties": options,
                },
            ]
        },
    }


def _rooms() -> list[str]:
    """Rooms whose bare name stands for a list of passes."""
    from passes import registry

    found = []
    for room in registry.ROOMS:
        try:
            registry.room_default(room)
        except registry.UnknownPass:
            continue
        found.append(room)
    return found


def _engines(definitions: Schema) -> Schema:
    from optimize.engines import registry

    models = {kind: registry.options_class(kind) for kind in registry.kinds()}
    section = _kinds(models, "engine", definitions)
    return {
        "description": "What runs the optimised model: an engine's name, or its kind with options.",
        "anyOf": [{"enum": list(models)}, section],
    }


def _kinds(models: Mapping[str, type[pydantic.BaseModel]], section: str, definitions: Schema) -> Schema:
    """A mapping whose `kind` says which keys it takes."""
    branches = []
    for kind, model in models.items():
        schema = _model(model, f"{section} {kind}", definitions)
        schema["properties"] = {"kind": {"const": kind}, **_without(schema["properties"], "kind")}
        schema["required"] = ["kind", *(key for key in schema.get("required", ()) if key != "kind")]
        branches.append({"if": {"properties": {"kind": {"const": kind}}}, "then": schema})
    return {
        "type": "object",
        "properties": {"kind": {"enum": list(models)}},
        "required": ["kind"],
        "allOf": branches,
    }


def _model(model: type[pydantic.BaseModel], name: str, definitions: Schema) -> Schema:
    """A model's schema; the models inside it go to `definitions` under its name."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{name} {{model}}")
    for inner, item in schema.pop("$defs", {}).items():
        definitions[f"{name} {inner}"] = item
    return schema


def _gates() -> Schema:
    """Limits, flat (`accuracy.cosine.min`) or nested."""
    flat: Schema = {}
    nested: Schema = {"type": "object", "additionalProperties": False, "properties": {}, "patternProperties": {}}
    bounds: Schema = {}
    for name, figure in FIGURES.items():
        limit = _limit(figure.unit, figure.meaning)
        bounds = {"type": "object", "additionalProperties": False, "properties": {"min": limit, "max": limit}}
        if name in ("metric", "drop"):
            nested["patternProperties"][rf"^{name}\..+\.(min|max)$"] = limit
            nested["properties"][name] = {"type": "object", "additionalProperties": bounds}
            continue
        flat |= {f"{name}.min": limit, f"{name}.max": limit}
        place = nested
        for part in name.split("."):
            place = place["properties"].setdefault(
                part, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        place["properties"] |= bounds["properties"]
    nested["properties"] |= flat
    return {"description": "Limits that the run must hold; null takes one away.", **nested}


def _limit(unit: str, meaning: str) -> Schema:
    units = {"bytes": "(B|KB|MB|GB|KiB|MiB|GiB)", "ms": "(us|ms|s)", "%": "%", "dB": "dB", "": "%"}
    spelled = units.get(unit)
    pattern = r"^\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*" + (f"{spelled}?" if spelled else "") + r"\s*$"
    text = {"type": "string", "pattern": pattern}
    return {"description": meaning, "anyOf": [{"type": "number"}, text, {"type": "null"}]}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _without(data: Mapping[str, Any], key: str) -> Schema:
    return {name: value for name, value in data.items() if name != key}


def _with_variables(schema: Any) -> Any:
    """The schema with `${name}` allowed wherever a value that is no free text stands."""
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in result:
            result[key] = {name: _or_variable(item) for name, item in result[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = _or_variable(result[key])
    for key in ("anyOf", "oneOf"):
        if key in result:
            result[key] = [_with_variables(item) for item in result[key]]
    if "allOf" in result:
        result["allOf"] = [
            {"if": item["if"], "then": _with_variables(item["then"])} if "if" in item else _with_variables(item)
            for item in result["allOf"]
        ]
    return result


def _or_variable(schema: Schema) -> Schema:
    below: Schema = _with_variables(schema)
    is_free_text = below.get("type") == "string" and "pattern" not in below
    if is_free_text or "const" in below or not below:
        return below
    notes: Schema = {key: below.pop(key) for key in ("description", "default", "title") if key in below}
    return {**notes, "anyOf": [below, _REFERENCE]}


def _without_required(schema: Any) -> Any:
    """The schema with nothing required, pointing at definitions of the same sort."""
    if isinstance(schema, list):
        return [_without_required(item) for item in schema]
    if not isinstance(schema, dict):
        return copy.copy(schema)
    result = {
        key: _without_required(item)
        for key, item in schema.items()
        if not (key == "required" and isinstance(item, list))
    }
    reference = result.get("$ref")
    if isinstance(reference, str):
        result["$ref"] = reference.replace("#/$defs/", "#/$defs/partial ")
    return result
