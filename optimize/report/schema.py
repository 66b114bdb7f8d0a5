"""The report's published JSON Schema, made from the model; `schema.json` beside this file is its copy."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from optimize.report.model import SCHEMA_VERSION, Report

IDENTIFIER = f"urn:model-optimize:report:{SCHEMA_VERSION}"


class _WithInfinities(GenerateJsonSchema):
    """JSON has no NaN and no infinity: the report writes them as these three strings."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        number = super().float_schema(schema)
        if schema.get("allow_inf_nan") is False:
            return number
        return {"anyOf": [number, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def build() -> dict[str, Any]:
    """The schema of a written report."""
    schema = Report.model_json_schema(mode="serialization", schema_generator=_WithInfinities)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": IDENTIFIER,
        **schema,
        "title": "optimize report",
    }


def published() -> dict[str, Any]:
    """The schema as it is shipped."""
    text = (importlib.resources.files("optimize.report") / "schema.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def text() -> str:
    """What `schema.json` must hold."""
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"
