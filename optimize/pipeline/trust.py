"""What a recipe would run that is not data."""

from __future__ import annotations

from pathlib import PurePath

from optimize.engines.tensorrt_plugin_builtin import BUILTIN
from optimize.errors import UsageError
from optimize.recipe.model import Recipe, TorchSourceSpec


def code_named_by(recipe: Recipe) -> list[str]:
    """Everything a recipe names that running it would execute: Python functions, native libraries; with its key.

    Options of ONNX Runtime's providers count as such: some of them load libraries, and each provider has its own.
    """
    named = []
    if isinstance(recipe.source, TorchSourceSpec):
        named.append(f"source.factory: {recipe.source.factory}")
    for key, spec in (("calibration", recipe.calibration), ("evaluate", recipe.evaluate)):
        if spec is not None and spec.data.rpartition(":")[2].isidentifier() and ":" in spec.data:
            named.append(f"{key}.data: {spec.data}")
    if recipe.evaluate.metric:
        named.append(f"evaluate.metric: {recipe.evaluate.metric}")
    named += [f"engine.plugins: {library}" for library in recipe.engine.get("plugins") or () if library != BUILTIN]
    named += [f"engine.provider_options: {option}" for option in recipe.engine.get("provider_options") or ()]
    return named


def written_outside(recipe: Recipe) -> list[str]:
    """Places outside the working folder that running a recipe would write to, with their keys."""
    places = {"output": recipe.output, "engine.timing_cache": recipe.engine.get("timing_cache")}
    return [
        f"{key}: {place}"
        for key, place in places.items()
        if place is not None and (PurePath(place).is_absolute() or ".." in PurePath(place).parts)
    ]


def refuse_code(recipe: Recipe) -> None:
    """Refuse a recipe that is more than data.

    Raises:
        UsageError: When it names Python code, a native library, or a place outside the working folder to write to.
    """
    outside = written_outside(recipe)
    if outside:
        raise UsageError(
            f"--data-only: the recipe writes outside the working folder: {'; '.join(outside)}.",
            hint="Name a folder below this one, or leave out --data-only if you trust it.",
        )
    named = code_named_by(recipe)
    if named:
        raise UsageError(
            f"--data-only: the recipe names code: {'; '.join(named)}.",
            hint="Use an ONNX source and data files, or leave out --data-only if you trust it.",
        )
