"""Paths under `engine:` start from the recipe that says them, whatever folder the run is started in."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from optimize.engines import tensorrt_library
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_library import FLAVOURS, Library
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.errors import UsageError
from optimize.pipeline import opening, preflight, trust
from optimize.recipe import reading, resolving
from optimize.recipe.model import Recipe
from tests.support import tiny

ENGINE = (
    "engine: {kind: tensorrt, plugins: [./own.so, libother.so, builtin], timing_cache: kept/times, "
    "strip_plan: true, refit_from: tiny.onnx}"
)
TEXT = tiny.RECIPE.replace("target: cpu", "target: h200").replace("engine: {kind: onnxruntime}", ENGINE)
BUILDS_ANYWHERE = Library(types.ModuleType("tensorrt_rtx"), FLAVOURS[1], "1.6.1")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder that is not the working folder."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "recipes"


def options_of(recipe: Recipe) -> TensorRTOptions:
    engine = opening.engine_of(recipe)
    assert isinstance(engine, TensorRTEngine)
    return engine.options


def test_paths_start_from_the_recipe_and_names_stay_names(elsewhere: Path) -> None:
    recipe = reading.load(tiny.write_recipe(elsewhere, TEXT))
    options = options_of(recipe)
    assert options.plugins == (str(elsewhere / "own.so"), "libother.so", "builtin")
    assert options.timing_cache == str(elsewhere / "kept" / "times")
    assert options.refit_from == str(elsewhere / "tiny.onnx")


def test_a_recipe_that_extends_one_in_another_folder_keeps_its_paths(elsewhere: Path) -> None:
    tiny.write_recipe(elsewhere, TEXT)
    Path("mine.yaml").write_text("extends: ../recipes/tiny.yaml\nname: mine\n")
    recipe = reading.load(Path("mine.yaml"))
    assert recipe.engine["plugins"] == ["../recipes/own.so", "libother.so", "builtin"]
    assert options_of(recipe) == options_of(reading.load(elsewhere / "tiny.yaml"))


def test_the_resolved_recipe_names_the_same_files(elsewhere: Path) -> None:
    recipe = reading.load(tiny.write_recipe(elsewhere, TEXT))
    Path("resolved.yaml").write_text(resolving.resolve(recipe, beside=Path.cwd()))
    assert str(elsewhere) not in Path("resolved.yaml").read_text()
    assert options_of(reading.load(Path("resolved.yaml"))) == options_of(recipe)


def test_files_that_the_engine_reads_are_known_for_the_steps_key(elsewhere: Path) -> None:
    recipe = reading.load(tiny.write_recipe(elsewhere, TEXT))
    (elsewhere / "kept").mkdir()
    (elsewhere / "kept" / "times").write_bytes(b"a build writes this, so it decides nothing")
    assert [path.name for path in opening.engine_files(recipe).values()] == ["tiny.onnx"]
    (elsewhere / "own.so").write_bytes(b"library")
    assert [path.name for path in opening.engine_files(recipe).values()] == ["own.so", "tiny.onnx"]


def test_a_library_that_is_not_there_is_said_before_the_run(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library, "load", lambda: BUILDS_ANYWHERE)
    recipe = reading.load(tiny.write_recipe(elsewhere, TEXT))
    (problem,) = preflight.plan(recipe, until="build").problems
    assert f"there is no plugin library {elsewhere / 'own.so'}" in str(problem)
    (elsewhere / "own.so").touch()
    assert preflight.plan(recipe, until="build").problems == ()


def test_data_only_asks_where_the_timing_cache_really_lies(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace("plugins: [./own.so, libother.so, builtin], ", "")
    path = tiny.write_recipe(elsewhere, text)
    with pytest.raises(UsageError, match=r"engine\.timing_cache: kept/times"):
        trust.refuse_code(reading.load(path))
    monkeypatch.chdir(elsewhere)
    trust.refuse_code(reading.load(path))
    path.write_text(f"base: /\n{text}")
    with pytest.raises(UsageError, match=r"engine\.timing_cache: kept/times"):
        trust.refuse_code(reading.load(path))
