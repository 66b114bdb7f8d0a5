"""From recipe data to the objects that do the work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimize.engines.base import AxisRange, Engine, TensorSpec
from optimize.recipe.model import (
    ExportedProgramSourceSpec,
    HuggingFaceSourceSpec,
    OnnxSourceSpec,
    Recipe,
    TorchSourceSpec,
)
from optimize.sources.base import Source


def recipe_from(payload: Mapping[str, Any]) -> Recipe:
    """The recipe that the parent sent along."""
    return Recipe.model_validate({**payload["recipe"], "base": payload["base"]})


def recipe_payload(recipe: Recipe, *, allow_pickle: bool = False) -> dict[str, Any]:
    """What `recipe_from` and `source_from` read back."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "base": str(recipe.base.resolve()),
        "allow_pickle": allow_pickle,
    }


def source_from(payload: Mapping[str, Any]) -> Source:
    """The source of the recipe that the parent sent along."""
    return source_of(recipe_from(payload), allow_pickle=payload["allow_pickle"])


def ranges_of(data: Mapping[str, Mapping[str, int]]) -> dict[str, AxisRange]:
    """Axis ranges from JSON data."""
    return {name: AxisRange(**{str(key): int(value) for key, value in item.items()}) for name, item in data.items()}


def specs_of(data: list[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Tensor specifications from JSON data."""
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in data)


def specs_data(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Tensor specifications as JSON data."""
    return [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]


def source_of(recipe: Recipe, *, allow_pickle: bool = False) -> Source:
    """The source a recipe names; touches no file. Pickles are read only when the user allowed it."""
    spec = recipe.source
    ranges = {name: AxisRange(item.minimum, item.typical, item.maximum) for name, item in spec.ranges.items()}
    if isinstance(spec, TorchSourceSpec):
        from optimize.sources.torch_module import TorchSource

        return TorchSource(
            factory=spec.factory,
            arguments=spec.arguments,
            opset=spec.opset,
            ranges=ranges,
            files=spec.files,
            base=recipe.base,
        )
    if isinstance(spec, ExportedProgramSourceSpec):
        from optimize.sources.exported_program import ExportedProgramSource

        return ExportedProgramSource(
            path=spec.path,
            opset=spec.opset,
            ranges=ranges,
            input_names=spec.input_names,
            output_names=spec.output_names,
            base=recipe.base,
            allow_pickle=allow_pickle,
        )
    if isinstance(spec, HuggingFaceSourceSpec):
        from optimize.sources.huggingface import HuggingFaceSource

        return HuggingFaceSource(
            path=spec.path,
            task=spec.task,
            attention=spec.attention,
            opset=spec.opset,
            ranges=ranges,
            base=recipe.base,
            allow_pickle=allow_pickle,
        )
    assert isinstance(spec, OnnxSourceSpec)
    from optimize.sources.onnx_file import OnnxSource

    return OnnxSource(path=spec.path, ranges=ranges, base=recipe.base)


def engine_of(recipe: Recipe, **changes: Any) -> Engine:
    """The engine that a recipe names, its paths starting from the recipe's base.

    Args:
        recipe: The run.
        changes: Options to set beside, or instead of, the recipe's own.
    """
    from optimize.engines import registry

    return registry.create({**recipe.engine, **changes}, recipe.base)


def engine_files(recipe: Recipe) -> dict[str, Path]:
    """Files that the engine reads by the recipe's word, such as plugin libraries, by their place in it."""
    from optimize.engines import registry

    files = registry.read_options(recipe.engine).placed(recipe.base).files_read()
    return {str(number): path for number, path in enumerate(files) if path.is_file()}


def local(directory: Path, name: str) -> Path:
    """A stage's file by the name its facts give; absolute names stand for files outside the store."""
    path = Path(name)
    return path if path.is_absolute() else directory / path
