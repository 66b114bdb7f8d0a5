"""The recipes that the project ships: to engines without a GPU for TensorRT, to a verdict on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from optimize.facts import StageRecord
from optimize.recipe import reading
from optimize.recipe.model import Recipe
from optimize.report.model import Report

RECIPES = Path(__file__).parents[2] / "recipes"

LAYERS: dict[str, dict[str, dict[str, int]]] = {
    "minilm-fp16-tensorrt": {"matmuls": {"fp16": 36}},
    "minilm-fp8-tensorrt": {"matmuls": {"fp8": 31}},
    "minilm-int4-tensorrt": {"matmuls": {"int4 weights, fp16": 30}},
    "minilm-nvfp4-tensorrt": {"matmuls": {"fp16": 36}},
    "digits-fp8-tensorrt": {"convolutions": {"fp8": 2}, "matmuls": {"fp8": 2}},
    "digits-int8-tensorrt": {"matmuls": {"int8": 2}},
}
"""At least so many layers of each engine run in the format that the recipe asks for, as TensorRT tells."""

PROJECTION, FEED_FORWARD = 384 * 384, 384 * 1536
STORED = {
    "minilm-fp8-tensorrt": ("fp8", 23 * PROJECTION + 8 * FEED_FORWARD),
    "minilm-int4-tensorrt": ("int4", 6 * (4 * PROJECTION + 2 * FEED_FORWARD)),
    "minilm-nvfp4-tensorrt": ("fp4", 6 * (4 * PROJECTION + 2 * FEED_FORWARD)),
}
"""The format of quantized weights in the plan, and how many numbers of MiniLM's six blocks it holds."""

Run = Callable[..., tuple[Report, Path]]


class Unwatched:
    """Nobody watches the run."""

    def started(self, stage: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def finished(self, record: StageRecord) -> None: ...


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a recipe; all share one store, so that a model is captured once."""
    from optimize.pipeline import running

    root = tmp_path_factory.mktemp("recipes")

    def run(recipe: Recipe, until: Literal["build"] | None = None) -> tuple[Report, Path]:
        output = root / recipe.name
        options = running.RunOptions(store=root / "store", output=output, until=until)
        return running.run(recipe, options, Unwatched()).report, output

    return run


def test_every_recipe_for_tensorrt_is_listed_with_the_formats_of_its_layers() -> None:
    assert sorted(LAYERS) == sorted(path.stem for path in RECIPES.glob("*-tensorrt.yaml"))


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("name", LAYERS)
def test_a_recipe_for_tensorrt_builds_its_engine_in_its_format_and_keeps_its_accuracy(name: str, run: Run) -> None:
    recipe = reading.load(RECIPES / f"{name}.yaml")
    fewer = recipe.evaluate.model_copy(update={"samples": 64})
    report, output = run(recipe.model_copy(update={"evaluate": fewer}), "build")
    assert [stage.error for stage in report.stages if stage.error] == []
    assert (output / "engine" / "engine.plan").stat().st_size > 0
    assert report.engine is not None
    for kind, formats in LAYERS[name].items():
        for format_name, count in formats.items():
            assert report.engine["counts"][kind].get(format_name, 0) >= count
    if name in STORED:
        constants = [constant for layer in report.engine["layers"] for constant in layer["constants"]]
        kind, numbers = STORED[name]
        assert sum(math.prod(item["shape"]) for item in constants if item["dtype"] == kind) == numbers
    model = next(result for result in report.accuracy if result.stage == "model")
    if (least := recipe.gates.get("accuracy.cosine.min")) is not None:
        assert all(item.cosine is not None and item.cosine >= least for item in model.outputs)
    if (least := recipe.gates.get("metric.top1.min")) is not None:
        assert model.metrics["top1"] >= least


@pytest.mark.slow
def test_the_digits_recipe_for_the_cpu_passes_all_its_gates(run: Run) -> None:
    report, output = run(reading.load(RECIPES / "digits-int8-cpu.yaml"))
    assert [stage.error for stage in report.stages if stage.error] == []
    assert {gate.gate: gate.passed for gate in report.gates} == dict.fromkeys(
        reading.load(RECIPES / "digits-int8-cpu.yaml").gates, True
    )
    assert report.verdict == "PASS"
    assert (output / "model.onnx").is_file()
