"""Runs with ModelOpt: what happens where it is not installed, and what it learns where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

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
