"""The resolved recipe says everything and loads back to the same recipe from wherever it lies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.errors import RecipeError
from optimize.recipe.reading import from_data, load
from optimize.recipe.resolving import BASE_FILE, base_from, resolve

Write = Callable[..., Path]

BASE = """\
variables: {samples: 16}
source:
  kind: torch
  factory: make.py:build
  arguments: {hidden: 32, scale: 1.0e-05, name: "no", none: null, text: "a$${b}: #"}
  ranges: {batch: {minimum: 1, typical: 8, maximum: 32}}
calibration: {data: calibration.py:batches, samples: "${samples}"}
"""


def test_it_runs_again_from_another_folder(write: Write, tmp_path: Path) -> None:
    write(BASE, "lib/base.yaml")
    recipe = load(write("extends: ../lib/base.yaml\ngates: {size.max: 40MB}\n", "recipes/r.yaml", whole=True))
    beside = tmp_path / "out" / "r"
    beside.mkdir(parents=True)
    (beside / "recipe.resolved.yaml").write_text(resolve(recipe, beside=beside))
    again = load(beside / "recipe.resolved.yaml")
    assert again.model_dump() == recipe.model_dump()
    assert again.base.resolve() == recipe.base.resolve()
    assert resolve(again, beside=beside) == resolve(recipe, beside=beside)


def test_it_is_the_same_bytes_wherever_it_will_lie_and_still_finds_its_files(write: Write, tmp_path: Path) -> None:
    write(BASE, "lib/base.yaml")
    recipe = load(write("extends: ../lib/base.yaml\ngates: {size.max: 40MB}\n", "recipes/r.yaml", whole=True))
    text = resolve(recipe)
    assert "\nbase: {file: recipe.base}\n" in text
    for folder in (tmp_path / "near", tmp_path / "far" / "away" / "r"):
        folder.mkdir(parents=True)
        (folder / "recipe.resolved.yaml").write_text(text)
        (folder / BASE_FILE).write_text(base_from(recipe, folder) + "\n")
        again = load(folder / "recipe.resolved.yaml")
        assert again.base.resolve() == recipe.base.resolve()
        assert again.model_dump() == recipe.model_dump()
        assert resolve(again) == text


def test_without_the_file_that_names_the_folder_it_says_what_to_write(write: Write, tmp_path: Path) -> None:
    (tmp_path / "moved.yaml").write_text(resolve(load(write(BASE, whole=True))))
    with pytest.raises(RecipeError, match=r"moved.yaml:4:7: base: there is no readable file .*write the folder"):
        load(tmp_path / "moved.yaml")
    (tmp_path / "moved.yaml").write_text("source: {kind: onnx, path: m.onnx}\nbase: {fille: x}\n")
    with pytest.raises(RecipeError, match="base: expected a folder, got a mapping"):
        load(tmp_path / "moved.yaml")


def test_it_names_no_folder_of_the_machine(write: Write, tmp_path: Path) -> None:
    write(BASE, "lib/base.yaml")
    recipe = load(write("extends: ../lib/base.yaml\n", "recipes/r.yaml", whole=True))
    text = resolve(recipe, beside=tmp_path / "out" / "r")
    assert str(tmp_path) not in text
    assert "base: ../../recipes\n" in text


def test_every_default_is_written_out(write: Write) -> None:
    text = resolve(load(write("engine: onnxruntime\n")), beside=Path.cwd())
    for line in ("target: cpu", "  graph_optimization: all", "    runs: 60", "seed: 0", "calibration: null"):
        assert f"\n{line}\n" in text


VALUES = st.one_of(st.text(), st.floats(allow_nan=False), st.integers(), st.booleans(), st.none())


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(min_size=1), VALUES, max_size=4))
def test_any_argument_comes_back_as_it_was(arguments: dict[str, object]) -> None:
    data = {"source": {"kind": "torch", "factory": "m:f", "arguments": arguments}}
    recipe = from_data(data, base=Path.cwd())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(resolve(recipe, beside=Path(folder)), encoding="utf-8")
        assert load(path).source == recipe.source
