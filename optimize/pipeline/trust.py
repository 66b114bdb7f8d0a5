"""What a recipe would run that is not data."""

from __future__ import annotations

from optimize.engines.tensorrt_plugin_builtin import BUILTIN
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
    named += [f"engine.plugins: {library}" for library in recipe.engine.get("plugins") or () if library != BUILTIN]
    return named


def refuse_code(recipe: Recipe) -> None:
    """Refuse a recipe that is more than data.

    Raises:
        UsageError: When it names Python code or a native library.
    """
    named = code_named_by(recipe)
    if named:
        raise UsageError(
            f"--data-only: the recipe names code: {'; '.join(named)}.",
            hint="Use an ONNX source and data files, or leave out --data-only if you trust it.",
        )
