"""A recipe loads fully checked, or raises one error that lists every fault once, at its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optimize.errors import RecipeError
from optimize.recipe.model import OnnxSourceSpec
from optimize.recipe.reading import from_data, load

Faults = Callable[..., list[str]]
Write = Callable[..., Path]

MANY = """\
schema_version: 1
nam: x
source:
  kind: torch
  factry: m:f
  opset: "20"
  ranges: {batch: {minumum: 1, typical: 8, maximum: 4}, tokens: {minimum: 3, typical: 1, maximum: 4}}
target: cpuu
passes: [cleann, 3, {a: 1, b: 2}, "${nope}"]
engine: {kind: onnxruntime, thread: 1, verify: "yes"}
evaluate:
  kind: clasification
  throughput: {runs: 2, contenders: [original, optimised]}
gates:
  accuracy.cosin.min: 0.9
  size: {max: 40XB}
  speedup: 3
"""


def test_every_fault_is_listed_at_its_place_with_what_was_meant(faults: Faults) -> None:
    assert faults(MANY) == [
        "recipe.yaml:2:1: nam: unknown key; did you mean 'name'?",
        "recipe.yaml:5:3: source.factry: unknown key; did you mean 'factory'?",
        "recipe.yaml:6:10: source.opset: expected a whole number, got '20'",
        "recipe.yaml:7:20: source.ranges.batch.minumum: unknown key; did you mean 'minimum'?",
        "recipe.yaml:7:65: source.ranges.tokens: expected minimum ≤ typical ≤ maximum, got 3, 1, 4",
        "recipe.yaml:8:9: target: no target is called 'cpuu'; did you mean 'cpu'?",
        "recipe.yaml:9:10: passes[0]: no pass is called 'cleann'; did you mean 'clean'?",
        "recipe.yaml:9:18: passes[1]: expected a pass's name, or its name with options, got 3",
        "recipe.yaml:9:21: passes[2]: expected one pass, got 2 keys (a, b); indent options below the name",
        "recipe.yaml:9:35: passes[3]: no variable is called 'nope'; add it to variables: or give --set",
        "recipe.yaml:10:29: engine.thread: unknown key; did you mean 'threads'?",
        "recipe.yaml:10:48: engine.verify: expected true or false, got 'yes'",
        "recipe.yaml:12:9: evaluate.kind: expected 'auto', 'classification', 'embedding' or 'regression', "
        "got 'clasification'; did you mean 'classification'?",
        "recipe.yaml:13:22: evaluate.throughput.runs: expected at least 5, got 2",
        "recipe.yaml:13:48: evaluate.throughput.contenders[1]: expected 'original', 'compiled', 'exported' or "
        "'optimized', got 'optimised'; did you mean 'optimized'?",
        "recipe.yaml:15:3: gates.accuracy.cosin.min: no figure is called 'accuracy.cosin'; "
        "did you mean 'accuracy.cosine.min'?",
        'recipe.yaml:16:15: gates.size.max: unit \'XB\' does not fit; expected a number such as "40MB" or "1.5GiB"',
        "recipe.yaml:17:3: gates.speedup: a gate ends in .min or .max, got 'speedup'; "
        "did you mean 'speedup.min' or 'speedup.max'?",
    ]


def test_a_wrong_kind_is_one_fault_and_not_one_per_member(faults: Faults) -> None:
    assert faults("source: {kind: tourch, factory: m:f, path: x, opset: 3}\n") == [
        "recipe.yaml:1:16: source.kind: no source is called 'tourch'; did you mean 'torch'?"
    ]
    assert faults("source: {path: x}\n") == [
        "recipe.yaml:1:9: source.kind: missing; known: torch, exported_program, huggingface, onnx"
    ]


def test_a_missing_source_is_said_once(faults: Faults) -> None:
    assert faults("name: x\n") == [
        "recipe.yaml:1:1: source: missing; say where the model comes from (kind: torch, exported_program, "
        "huggingface, onnx)"
    ]


@pytest.mark.parametrize(
    "section", ["source", "passes", "engine", "calibration", "evaluate", "gates", "variables", "target"]
)
def test_a_section_of_the_wrong_shape_is_one_fault(section: str, faults: Faults) -> None:
    rest = "" if section == "source" else "source: {kind: onnx, path: m.onnx}\n"
    (fault,) = faults(f"{section}: 12\n{rest}")
    assert fault.startswith(f"recipe.yaml:1:{len(section) + 3}: {section}: expected ")
    assert fault.endswith(", got 12")


def test_a_file_that_is_a_list_is_refused(faults: Faults) -> None:
    assert faults("- a\n") == ["recipe.yaml:1:1: expected a mapping of keys, got a list"]


def test_the_smallest_recipe_takes_every_default(write: Write) -> None:
    recipe = load(write("", "small.yaml"))
    assert recipe.name == "small"
    assert recipe.source == OnnxSourceSpec(kind="onnx", path="model.onnx")
    assert (recipe.target, recipe.engine["kind"], recipe.passes) == ("cpu", "onnxruntime", ())
    assert recipe.engine["graph_optimization"] == "all"
    assert recipe.base == Path.cwd()


def test_a_recipe_without_a_name_is_called_as_its_file(write: Write) -> None:
    assert load(write("", "my model (2).v1.yaml")).name == "my-model-2"


def test_an_engine_may_be_a_bare_name(write: Write) -> None:
    assert load(write("engine: onnxruntime\n")).engine == load(write("engine: {kind: onnxruntime}\n")).engine


def test_pytorch_is_no_engine_for_the_result(faults: Faults) -> None:
    (fault,) = faults("engine: torch\n", whole=False)
    assert "engine.kind: no engine is called 'torch'; PyTorch runs the original" in fault


def test_an_engine_that_the_target_does_not_have_is_refused(faults: Faults) -> None:
    (fault,) = faults("target: cpu\nengine: tensorrt\n", whole=False)
    assert fault.startswith("recipe.yaml:2:9: target: target 'cpu' is not run by the engine 'tensorrt'.")


def test_a_name_that_would_leave_the_output_folder_is_refused(faults: Faults) -> None:
    (fault,) = faults("name: ../x\n", whole=False)
    assert fault == "recipe.yaml:2:7: name: expected letters, digits, '.', '_' and '-' only, got '../x'"


def test_an_unknown_schema_version_is_refused(faults: Faults) -> None:
    assert faults("schema_version: 2\n", whole=False) == ["recipe.yaml:2:17: schema_version: expected 1, got 2"]


def test_a_program_may_hand_over_data_and_gets_the_same_faults(tmp_path: Path) -> None:
    data = {"source": {"kind": "onnx", "path": "m.onnx"}, "gates": {"size": {"max": "1MB"}}}
    recipe = from_data(data, base=tmp_path, name="m")
    assert (recipe.gates, recipe.base, recipe.name) == ({"size.max": 1e6}, tmp_path, "m")
    with pytest.raises(RecipeError, match=r"^source.kind: no source is called 'onx'; did you mean 'onnx'"):
        from_data({"source": {"kind": "onx"}}, base=tmp_path)


def test_reading_imports_no_heavy_library(write: Write) -> None:
    path = write("gates: {accuracy.cosine.min: 0.9}\n").resolve()
    heavy = ("torch", "onnxruntime", "onnx_ir", "onnxscript", "transformers")
    script = (
        "import sys; from pathlib import Path; from optimize.recipe.reading import load; "
        f"load(Path({str(path)!r})); print([name for name in {heavy!r} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
