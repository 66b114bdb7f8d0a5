"""A missed accuracy gate is traced to its pass and layers, and the printed lines mend it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimize.errors import StageFailed
from optimize.pipeline import executing, running
from optimize.pipeline.bisecting import bisect
from optimize.pipeline.mending import entry
from optimize.recipe import reading
from optimize.recipe.model import PassSpec

LAYERS = """<ir_version: 10, opset_import: ["": 20]>
layers (float[batch, 32] x) => (float[batch, 32] y) {
  good = MatMul(x, w0)
  kept = Relu(good)
  y = MatMul(kept, w1)
}"""

RECIPE = """\
schema_version: 1
name: layers
source: {kind: onnx, path: layers.onnx}
passes:
  - clean.dead_code
  - quantize.int8: {ops: [MatMul]}
  - clean.names
evaluate:
  data: inputs.npz
  throughput: null
gates:
  accuracy.cosine.min: 0.9995
"""


@pytest.mark.parametrize("first", range(1, 9))
def test_bisection_finds_the_first_that_misses_and_asks_few(first: int) -> None:
    asked: list[int] = []

    def misses(place: int) -> bool:
        asked.append(place)
        return place >= first

    assert bisect(9, misses) == first
    assert len(asked) <= 4


def test_an_entry_says_only_what_differs_from_the_defaults_and_quotes_what_must_be() -> None:
    options = {"skip": ["head", "off", "layer[[]0]"], "activations": "static", "weight_clip": False}
    assert entry(PassSpec(name="quantize.int8", options=options)) == (
        '  - quantize.int8: {activations: static, skip: [head, "off", "layer[[]0]"]}'
    )
    assert entry(PassSpec(name="clean.names")) == "  - clean.names"


def test_a_long_entry_takes_a_line_for_each_layer() -> None:
    options = {"activations": "static", "skip": [f"encoder.layer.{number}.output.dense" for number in range(3)]}
    assert entry(PassSpec(name="quantize.int8", options=options)).splitlines() == [
        "  - quantize.int8:",
        "      activations: static",
        "      skip:",
        *(f"        - encoder.layer.{number}.output.dense" for number in range(3)),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two layers; the first one's weights have an outlier per channel, which eight bits cannot hold."""
    rng = np.random.default_rng(5)
    weights = [(rng.standard_normal((32, 32)) / 5).astype(np.float32) for _ in range(2)]
    weights[0][0] *= 400
    inputs = rng.standard_normal((64, 32)).astype(np.float32)
    inputs[:, 0] *= 0.001
    model = onnx.parser.parse_model(LAYERS)
    for node in model.graph.node:
        node.name = f"layer_{node.output[0]}"
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, f"w{n}") for n, array in enumerate(weights))
    onnx.save(model, tmp_path / "layers.onnx")
    np.savez(tmp_path / "inputs.npz", x=inputs)
    (tmp_path / "layers.yaml").write_text(RECIPE)
    return tmp_path


def run(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", "run", f"{name}.yaml", "--store", "store", "-o", name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
    )


def report(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "report.json").read_text())
    return found


def test_the_lines_that_a_missed_gate_prints_mend_the_verdict_when_pasted(folder: Path) -> None:
    missed = run(folder, "layers")
    assert missed.returncode == 1, missed.stderr
    blame = report(folder, "layers")["blame"]
    assert blame["stage"] == "quantize.int8"
    assert blame["reason"].startswith("Before it: accuracy.cosine 1. After it: accuracy.cosine 0.")
    assert blame["check"].startswith("Tried: with these lines every missed accuracy gate holds")
    assert blame["remedy"] in missed.stdout
    text = re.sub(r"(?m)^  - quantize.int8: .*$", lambda _: blame["remedy"], RECIPE)
    (folder / "mended.yaml").write_text(text)
    mended = run(folder, "mended")
    assert mended.returncode == 0, mended.stdout
    layers = {layer["name"]: layer["weight"] for layer in report(folder, "mended")["layers"]}
    assert sorted(layers.values()) == ["float32", "int8"], "one layer is kept, not both"


def test_lines_are_found_where_the_recipe_counts_what_the_pass_finds(folder: Path) -> None:
    counted = RECIPE.replace("{ops: [MatMul]}", "{ops: [MatMul], expect: {layer: 2}}")
    (folder / "counted.yaml").write_text(counted)
    missed = run(folder, "counted")
    assert missed.returncode == 1, missed.stderr
    blame = report(folder, "counted")["blame"]
    assert blame["check"].startswith("Tried: with these lines every missed accuracy gate holds")
    assert "expect" not in blame["remedy"]


def test_a_missed_gate_stays_one_when_tracing_it_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = executing.Executor._compute

    def killed(self: executing.Executor, key: str, label: str, name: str, *more: Any) -> Any:
        if name == "blame":
            raise StageFailed("step 'blame' was ended by signal 9.")
        return compute(self, key, label, name, *more)

    monkeypatch.setattr(executing.Executor, "_compute", killed)
    options = running.RunOptions(store=folder / "store", output=folder / "out")
    result = running.run(reading.load(folder / "layers.yaml"), options, executing.Silent())
    assert (result.exit_code, result.report.verdict) == (1, "FAIL")
    assert result.report.blame is None
    assert any("could not be traced: step 'blame' was ended by signal 9" in note for note in result.report.notes)
