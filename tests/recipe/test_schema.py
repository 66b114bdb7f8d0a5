"""The schema takes what the reader takes, refuses what editors should mark, and names everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from optimize.engines import registry as engines
from optimize.figures import FIGURES
from optimize.recipe.nodes import Place, parse
from optimize.recipe.schema import json_schema
from passes import registry

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


def accepts(schema: dict[str, Any], text: str) -> bool:
    data = parse(text, Place("r.yaml", 1, 1)).plain()
    return bool(jsonschema.Draft202012Validator(schema).is_valid(data))


def test_it_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_products_recipes_fit(path: Path, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(parse(path.read_text(), Place(path.name, 1, 1)).plain())


def test_every_pass_engine_and_figure_is_in_it(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    for name in (*registry.names(), *engines.kinds(), *FIGURES):
        assert f'"{name}' in text
    for name in registry.names():
        for option in registry.find(name).model_fields:
            assert f'"{option}"' in text


SOURCE = "source: {kind: onnx, path: m.onnx}\n"


@pytest.mark.parametrize(
    "text",
    [
        SOURCE,
        SOURCE + "passes: [clean, fuse.attention, {clean.fold_constants: {limit_bytes: 10}}, {clean.names: null}]",
        SOURCE + "engine: onnxruntime",
        SOURCE + "engine: {kind: onnxruntime, threads: 2}",
        SOURCE + "gates: {accuracy.cosine.min: 0.99, size.max: 40MB, speedup: {min: 1.5}, metric.f1.min: 90%}",
        SOURCE + "gates: {metric: {f1: {min: 0.9}}, drop.top1.max: null, accuracy: {cosine: {min: 0.9}}}",
        SOURCE + "seed: ${seed}\nvariables: {seed: 3}\nevaluate: {throughput: {runs: '${runs}'}}",
        SOURCE + "calibration: null\nevaluate: {throughput: null}",
        SOURCE + "target: h200\nengine: {kind: tensorrt, workspace: 4GiB}",
        "extends: base.yaml\nsource: {ranges: {batch: {maximum: 4}}}\ncalibration: {samples: 3}",
        "source: {kind: torch, factory: 'm:f', arguments: {anything: [1, {a: b}]}}",
    ],
)
def test_what_the_reader_takes_fits(text: str, schema: dict[str, Any]) -> None:
    data = parse(text, Place("r.yaml", 1, 1)).plain()
    jsonschema.Draft202012Validator(schema).validate(data)


@pytest.mark.parametrize(
    "text",
    [
        SOURCE + "nam: x",
        SOURCE + "passes: [cleann]",
        SOURCE + "passes: [{clean.fold_constants: {limit: 10}}]",
        SOURCE + "passes: [{clean.fold_constants: {limit_bytes: many}}]",
        SOURCE + "passes: [{clean.names: {}, clean.shapes: {}}]",
        SOURCE + "engine: torch",
        SOURCE + "engine: {kind: onnxruntime, thread: 2}",
        SOURCE + "engine: {kind: onnxruntime, threads: 0}",
        SOURCE + "gates: {accuracy.cosin.min: 0.9}",
        SOURCE + "gates: {size.max: 40XB}",
        SOURCE + "target: gpu",
        SOURCE + "seed: text",
        SOURCE + "calibration: {samples: 3}",
        "source: {kind: onnx}",
        "source: {kind: onnx, path: m.onnx, factory: 'm:f'}",
        "source: {kind: onx, path: m.onnx}",
        "source: {kind: torch, factory: 'm:f', ranges: {batch: {minimum: 1}}}",
    ],
)
def test_what_the_reader_refuses_does_not_fit(text: str, schema: dict[str, Any]) -> None:
    assert not accepts(schema, text)


def test_it_is_the_same_each_time() -> None:
    assert json.dumps(json_schema()) == json.dumps(json_schema())
