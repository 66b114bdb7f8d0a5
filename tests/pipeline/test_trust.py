"""What `--data-only` refuses, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimize.errors import UsageError
from optimize.pipeline import preflight, trust
from optimize.recipe import reading
from tests.support import tiny

ENGINE = "engine: {kind: onnxruntime}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            ENGINE,
            "engine: {kind: onnxruntime, provider_options: {trt_extra_plugin_lib_paths: ./evil.so}}",
            "engine.provider_options: trt_extra_plugin_lib_paths",
        ),
        (ENGINE, "engine: {kind: tensorrt, timing_cache: /etc/cache}", "engine.timing_cache: /etc/cache"),
        (ENGINE, "engine: {kind: tensorrt, timing_cache: ../cache}", "engine.timing_cache: ../cache"),
        (ENGINE, f"{ENGINE}\noutput: ../elsewhere", "output: ../elsewhere"),
        (ENGINE, f"{ENGINE}\noutput: out/../../elsewhere", "output: out/../../elsewhere"),
    ],
)
def test_a_recipe_that_loads_libraries_or_writes_elsewhere_is_not_data(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = tiny.RECIPE.replace("target: cpu", "target: h200") if "tensorrt" in new else tiny.RECIPE
    recipe = reading.load(tiny.write_recipe(tmp_path, text.replace(old, new)))
    with pytest.raises(UsageError) as caught:
        trust.refuse_code(recipe)
    assert said in str(caught.value)


@pytest.mark.parametrize("extra", ["", "\noutput: results/{name}"])
def test_a_recipe_of_data_is_taken(tmp_path: Path, extra: str) -> None:
    trust.refuse_code(reading.load(tiny.write_recipe(tmp_path, tiny.RECIPE.replace(ENGINE, ENGINE + extra))))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the report"),
        ("{", "is no JSON"),
        ("[]", "is no report"),
        ('{"throughput": 3}', "report"),
    ],
)
def test_a_previous_report_that_cannot_be_compared_with_is_said_before_the_run(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "earlier.json").write_text(content)
    recipe = reading.load(tiny.write_recipe(tmp_path, f"{tiny.RECIPE}previous: earlier.json\n"))
    (problem,) = preflight.plan(recipe).problems
    assert isinstance(problem, UsageError)
    assert said in str(problem)
    assert preflight.plan(recipe, until="build").problems == ()


def test_a_previous_report_that_is_there_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "earlier.json").write_text(json.dumps({"name": "tiny", "started_at": "", "verdict": "pass"}))
    recipe = reading.load(tiny.write_recipe(tmp_path, f"{tiny.RECIPE}previous: earlier.json\n"))
    assert preflight.plan(recipe).problems == ()
