"""What a recipe would run that is not data."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from optimize.engines import registry
from optimize.errors import UsageError
from optimize.recipe.model import Recipe, TorchSourceSpec


def code_named_by(recipe: Recipe) -> list[str]:
    """Everything a recipe names that running it would execute: Python functions, native libraries; with its key."""
    named = []
    if isinstance(recipe.source, TorchSourceSpec):
        named.append(f"source.factory: {recipe.source.factory}")
    for key, spec in (("calibration", recipe.calibration), ("evaluate", recipe.evaluate)):
        if spec is not None and spec.data.rpartition(":")[2].isidentifier() and ":" in spec.data:
            named.append(f"{key}.data: {spec.data}")
    if recipe.evaluate.metric:
        named.append(f"evaluate.metric: {recipe.evaluate.metric}")
    return named + [f"engine.{code}" for code in registry.read_options(recipe.engine).native_code()]


def written_outside(recipe: Recipe) -> list[str]:
    """Places outside the working folder that running a recipe would write to, with their keys."""
    found = []
    if PurePath(recipe.output).is_absolute() or ".." in PurePath(recipe.output).parts:
        found.append(f"output: {recipe.output}")
    cache = recipe.engine.get("timing_cache")
    # Lexically, as the engine's paths are joined to the base, which itself may be behind a link.
    if cache is not None and not Path(os.path.normpath(recipe.base.resolve() / cache)).is_relative_to(Path.cwd()):
        found.append(f"engine.timing_cache: {cache}")
    return found


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
