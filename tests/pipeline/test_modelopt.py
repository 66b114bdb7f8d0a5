"""Runs with ModelOpt: what happens where it is not installed, and what it learns where it is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from optimize.bundle import reproduce
from optimize.recipe.reading import load
from tests.docs.blocks import blocks
from tests.support import reports

ROOT = Path(__file__).parents[2]

WITHOUT_MODELOPT = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.startswith("modelopt") else found(name, *more)
from optimize.cli.main import main
main()
"""

RECIPE = """schema_version: 1
name: tiny
source: {kind: onnx, path: tiny.onnx}
passes:
  - quantize.modelopt: {calibration: max}
calibration: {data: random, samples: 8}
evaluate: {data: random, samples: 8}
"""

TINY = """<ir_version: 10, opset_import: ["" : 20]>
tiny (float[batch, 4] x) => (float[batch, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }"""


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_modelopt_a_recipe_with_it_ends_with_3_and_the_command_that_installs_it(
    command: str, tmp_path: Path
) -> None:
    onnx.save(onnx.parser.parse_model(TINY), tmp_path / "tiny.onnx")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = [command, str(tmp_path / "recipe.yaml"), "--store", str(tmp_path / "store")]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_MODELOPT, *words],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 3, result.stderr
    said = " ".join((result.stdout + result.stderr).split())
    assert "quantize.modelopt: NVIDIA ModelOpt is not installed. Install it with: pip install" in said


FACTORY = """
import torch
def build():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
    return {"module": module, "inputs": {"x": torch.randn(4, 64)}, "dynamic_axes": {"x": {0: "batch"}},
            "output_names": ["y"], "ranges": {"batch": (1, 8, 16)}}
"""

TORCH_RECIPE = """schema_version: 1
name: net
source: SOURCE
passes:
  - clean
  - quantize.modelopt_torch: {config: INT8_DEFAULT_CFG}
calibration: {data: random, samples: 32}
evaluate: {data: random, samples: 32, throughput: null}
gates: {accuracy.cosine.min: 0.999}
"""


def optimize(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *words], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason='nvidia-modelopt is not installed (the extra "modelopt")'
)
def test_a_run_takes_what_modelopt_learned_of_the_module_and_is_kept_in_the_store(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    (tmp_path / "recipe.yaml").write_text(TORCH_RECIPE.replace("SOURCE", '{kind: torch, factory: "net.py:build"}'))
    run = ("run", "recipe.yaml", "--store", "store", "--output", "out")
    first = optimize(tmp_path, *run)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    stages = {stage["name"]: stage["outcome"] for stage in report["stages"]}
    assert stages["learn"] == "done"
    (record,) = (item for item in report["passes"] if item["name"] == "quantize.modelopt_torch")
    assert record["changed"] == ["0", "2"]
    assert record["figures"]["learned"] == "2 in int8"
    assert "quantizers" not in first.stdout + first.stderr  # ModelOpt's own chatter
    (tmp_path / "out" / "report.json").unlink()
    assert optimize(tmp_path, *run).returncode == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {stage["name"]: stage["outcome"] for stage in again["stages"]}["learn"] == "reused"


def test_a_source_without_a_module_is_refused_before_anything_runs(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(TINY), tmp_path / "tiny.onnx")
    (tmp_path / "recipe.yaml").write_text(TORCH_RECIPE.replace("SOURCE", "{kind: onnx, path: tiny.onnx}"))
    result = optimize(tmp_path, "check", "recipe.yaml", "--store", "store")
    assert result.returncode != 0
    said = " ".join((result.stdout + result.stderr).split())
    assert "quantize.modelopt_torch: a source of kind 'onnx' has no module to learn from." in said


def test_the_users_module_is_not_run_when_only_data_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('the factory was imported')")
    (tmp_path / "recipe.yaml").write_text(TORCH_RECIPE.replace("SOURCE", '{kind: torch, factory: "net.py:build"}'))
    result = optimize(tmp_path, "run", "recipe.yaml", "--store", "store", "--data-only")
    assert result.returncode == 2
    assert "source.factory: net.py:build" in " ".join(result.stderr.split())
    assert "was imported" not in result.stderr


def test_a_bundle_makes_the_step_again_too() -> None:
    report = reports.passing()
    learned = report.stages[0].model_copy(update={"name": "learn"})
    made = reproduce.scripts(report.model_copy(update={"stages": (*report.stages, learned)}), {})
    assert any(name.endswith("-learn.sh") for name in made)


def test_every_recipe_of_the_page_reads(tmp_path: Path) -> None:
    pages = [block for block in blocks(ROOT / "docs" / "modelopt.md") if block.language == "yaml"]
    assert len(pages) == 3
    for block in pages:
        (tmp_path / block.title).write_text(block.body)
        assert load(tmp_path / block.title).name == Path(block.title).stem
