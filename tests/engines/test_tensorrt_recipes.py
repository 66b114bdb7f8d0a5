"""Every recipe that targets TensorRT is built to an engine, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from optimize.facts import StageRecord
from optimize.recipe import reading

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")
    if YAML(typ="safe").load(path).get("engine", {}).get("kind") == "tensorrt"
)


class Unwatched:
    """Nobody watches the run."""

    def started(self, stage: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def finished(self, record: StageRecord) -> None: ...


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_for_tensorrt_builds_its_engine(path: Path, tmp_path: Path) -> None:
    from optimize.pipeline import running

    options = running.RunOptions(store=tmp_path / "store", output=tmp_path / "out", until="build")
    recipe = reading.load(path)
    few = recipe.evaluate.model_copy(update={"samples": 8, "attribution": "off"})  # Building is what is tested.
    result = running.run(recipe.model_copy(update={"evaluate": few}), options, Unwatched())
    assert [stage.error for stage in result.report.stages if stage.error] == []
    assert (tmp_path / "out" / "engine" / "engine.plan").is_file()
    assert result.report.engine["counts"]
