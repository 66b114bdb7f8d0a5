"""A recipe in a few lines for a reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimize.figures import split_gate
from optimize.recipe.model import DataSpec, Recipe


def lines(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What the recipe comes to, as (label, text); a label is empty where a line goes on."""
    source = recipe.source.model_dump(exclude_defaults=True, exclude={"kind", "ranges"})
    yield "recipe", recipe.name
    yield "source", f"{recipe.source.kind}: {_options(source)}"
    for axis, sizes in recipe.source.ranges.items():
        yield "", f"{axis} {sizes.minimum} to {sizes.maximum}, typically {sizes.typical}"
    yield "target", recipe.target
    yield "engine", f"{recipe.engine['kind']}: {_options(_without(recipe.engine, 'kind'))}"
    for index, item in enumerate(recipe.passes):
        options = _options(item.options)
        yield "" if index else "passes", f"{index + 1:>2} {item.name}" + (f"  {options}" if options else "")
    if recipe.calibration is not None:
        yield "calibration", _data(recipe.calibration)
    yield "evaluation", _data(recipe.evaluate)
    for index, (gate, limit) in enumerate(recipe.gates.items()):
        figure, bound, facts = split_gate(gate)
        sign = "≥" if bound == "min" else "≤"
        yield "" if index else "gates", f"{figure} {sign} {limit:g} {facts.unit}".rstrip()
    yield "output", recipe.output.replace("{name}", recipe.name)


def _data(spec: DataSpec) -> str:
    count = f"{spec.samples} samples" if spec.samples is not None else "all samples"
    return f"{spec.data}, {count}, {spec.batch} a batch"


def _without(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != key}


def _options(options: Mapping[str, Any]) -> str:
    """Options that say something: nulls and empty ones left out."""
    said = {key: value for key, value in options.items() if value is not None and value not in ({}, [], ())}
    return ", ".join(f"{key}={_value(value)}" for key, value in said.items())


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
