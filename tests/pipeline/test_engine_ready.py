"""What an engine cannot run here is said before the first step, and a run that only builds is let through."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Literal

import pytest

from optimize.engines import onnxruntime, tensorrt_device, tensorrt_library, tensorrt_plugin_builtin
from optimize.engines.tensorrt_library import FLAVOURS, Library
from optimize.errors import MISSING, BackendMissing
from optimize.pipeline import opening, preflight, running
from optimize.pipeline.executing import Silent
from optimize.pipeline.stages import throughput
from optimize.recipe import reading
from tests.support import tiny

TENSORRT = tiny.RECIPE.replace("target: cpu", "target: h200").replace("kind: onnxruntime", "kind: tensorrt")
SEARCH = "  - quantize.auto: {options: {int8: {activations: static}}}\ncalibration: {data: samples.npz}"
SEARCHING = TENSORRT.replace("  - ${passes}", SEARCH)
BUILDS_ANYWHERE = Library(types.ModuleType("tensorrt_rtx"), FLAVOURS[1], "1.6.1")


def no_device() -> None:
    raise BackendMissing("no GPU here: a test says so.", hint="Find one.")


@pytest.fixture
def without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TensorRT that builds without a GPU, and no GPU."""
    monkeypatch.setattr(tensorrt_library, "load", lambda: BUILDS_ANYWHERE)
    monkeypatch.setattr(tensorrt_device, "require", no_device)


@pytest.mark.usefixtures("without_device")
def test_a_run_that_would_open_the_engine_ends_before_its_first_step(tmp_path: Path) -> None:
    recipe = reading.load(tiny.write_recipe(tmp_path, TENSORRT))
    options = running.RunOptions(store=tmp_path / "store", output=tmp_path / "out")
    with pytest.raises(BackendMissing, match=r"no GPU here.*Or stop after the build, with --until build") as caught:
        running.run(recipe, options, Silent())
    assert caught.value.exit_code == MISSING
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_device")
@pytest.mark.parametrize(
    ("text", "until", "problems"),
    [
        (TENSORRT, None, 1),
        (TENSORRT, "build", 0),
        (TENSORRT, "passes", 0),
        (SEARCHING, "passes", 1),  # it times candidates
    ],
)
def test_only_what_the_run_reaches_is_asked_for(
    tmp_path: Path, text: str, until: Literal["passes", "build"] | None, problems: int
) -> None:
    recipe = reading.load(tiny.write_recipe(tmp_path, text))
    (tmp_path / "samples.npz").touch()
    found = preflight.plan(recipe, until=until).problems
    assert len(found) == problems, found
    assert all(isinstance(problem, BackendMissing) for problem in found)


def test_what_the_builtin_plugin_runs_with_is_asked_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernels() -> None:
        raise BackendMissing("torch sees no GPU.")

    monkeypatch.setattr(tensorrt_library, "load", lambda: BUILDS_ANYWHERE)
    monkeypatch.setattr(tensorrt_device, "require", lambda: None)
    monkeypatch.setattr(tensorrt_plugin_builtin, "require_runtime", no_kernels)
    text = TENSORRT.replace("kind: tensorrt", "kind: tensorrt, plugins: [builtin]")
    recipe = reading.load(tiny.write_recipe(tmp_path, text))
    (problem,) = preflight.plan(recipe).problems
    assert "torch sees no GPU." in str(problem)
    assert preflight.plan(recipe, until="build").problems == ()


def test_a_missing_provider_of_onnx_runtime_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "missing", lambda provider: f"no {provider} here.")
    recipe = reading.load(tiny.write_recipe(tmp_path))
    assert [str(problem) for problem in preflight.plan(recipe).problems] == ["no cpu here."]


@pytest.mark.parametrize(("engine", "threads"), [("", 3), (", threads: 2", 2)])
def test_the_engine_is_timed_with_the_recipes_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, threads: int
) -> None:
    opened: list[int | None] = []
    monkeypatch.setattr(
        onnxruntime.OnnxRuntimeEngine, "open", lambda self, artifact: opened.append(self.options.threads)
    )
    text = tiny.RECIPE.replace("runs: 5,", "runs: 5, threads: 3,").replace("onnxruntime}", f"onnxruntime{engine}}}")
    payload = opening.recipe_payload(reading.load(tiny.write_recipe(tmp_path, text)))
    throughput.open_contender(payload, "optimized", "engine.onnx")
    assert opened == [threads]
