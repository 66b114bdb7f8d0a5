"""Engines by the name that recipes give them; each is imported when it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pydantic

from optimize.engines.base import Engine, EngineOptions
from optimize.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an engine lives.

    Attributes:
        module: Its module.
        options: Name of its options class there.
        engine: Name of its engine class there, constructed from the options.
    """

    module: str
    options: str
    engine: str


ENGINES: dict[str, Entry] = {
    "onnxruntime": Entry("optimize.engines.onnxruntime", "OnnxRuntimeOptions", "OnnxRuntimeEngine"),
    "tensorrt": Entry("optimize.engines.tensorrt", "TensorRTOptions", "TensorRTEngine"),
}


def kinds() -> tuple[str, ...]:
    """Every engine's name. PyTorch is not among them: it runs the original, not an optimised graph."""
    return tuple(ENGINES)


def options_class(kind: str) -> type[EngineOptions]:
    """The options of an engine: the keys under `engine:` beside `kind`."""
    entry = ENGINES[kind]
    return cast("type[EngineOptions]", getattr(importlib.import_module(entry.module), entry.options))


def read_options(options: Mapping[str, Any]) -> EngineOptions:
    """The options that a recipe's `engine:` section holds.

    Raises:
        UsageError: When no engine has this kind, or these options.
    """
    kind = str(options.get("kind"))
    if kind not in ENGINES:
        raise UsageError(f"engine: no engine is called '{kind}'.", hint=f"Known: {', '.join(kinds())}.")
    model = options_class(kind)
    values = {key: value for key, value in options.items() if key != "kind" or "kind" in model.model_fields}
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("engine", *first["loc"])))
        raise UsageError(f"{where}: {first['msg']}.") from error


def create(options: Mapping[str, Any], base: Path = Path()) -> Engine:
    """The engine that a recipe's `engine:` section describes.

    Args:
        options: The section.
        base: Folder that relative paths in it start from.

    Raises:
        UsageError: When no engine has this kind, or these options.
    """
    read = read_options(options).placed(base)
    entry = ENGINES[str(options["kind"])]
    return cast(Engine, getattr(importlib.import_module(entry.module), entry.engine)(read))
