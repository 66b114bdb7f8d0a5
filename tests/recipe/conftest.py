"""A folder of recipe files, and a short way to load one and read its faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from optimize.errors import RecipeError
from optimize.recipe.reading import load

SOURCE = "source: {kind: onnx, path: model.onnx}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe (a source is added unless it has one) and go to its folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "recipe.yaml", *, whole: bool = False) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if whole or "source:" in text else SOURCE + text)
        return path

    return write


@pytest.fixture
def faults(write: Callable[..., Path]) -> Callable[..., list[str]]:
    """The faults of a recipe's text, one line each; none when it loads."""

    def faults(text: str, *, variables: Mapping[str, str] | None = None, whole: bool = True) -> list[str]:
        path = write(text, whole=whole)
        try:
            load(path, variables=variables)
        except RecipeError as error:
            return [str(fault) for fault in error.faults]
        return []

    return faults
