"""`optimize recipe`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def optimize(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "optimize", "recipe", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


RECIPE = """\
source: {kind: onnx, path: m.onnx}
variables: {limit: 1MB}
passes: [clean.names]
gates: {size.max: '${limit}'}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_show_says_what_the_recipe_comes_to(folder: Path) -> None:
    done = optimize("show", "r.yaml", "--set", "limit=2MB", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "source       onnx: path=m.onnx\n" in done.stdout
    assert "gates        size ≤ 2e+06 bytes\n" in done.stdout


def test_resolve_writes_a_recipe_that_resolves_to_itself(folder: Path) -> None:
    (folder / "out").mkdir()
    assert optimize("resolve", "r.yaml", "-o", "out/r.yaml", folder=folder).returncode == 0
    text = (folder / "out/r.yaml").read_text()
    assert "\nbase: ..\n" in text
    assert optimize("resolve", "out/r.yaml", "-o", "out/s.yaml", folder=folder).returncode == 0
    assert (folder / "out/s.yaml").read_text() == text


def test_faults_go_to_stderr_with_exit_code_2(folder: Path) -> None:
    (folder / "bad.yaml").write_text(RECIPE + "sede: 1\n")
    done = optimize("show", "bad.yaml", folder=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "bad.yaml:5:1: sede: unknown key; did you mean 'seed'?" in done.stderr


def test_the_schema_is_json(folder: Path) -> None:
    done = optimize("schema", folder=folder)
    assert json.loads(done.stdout)["title"] == "Recipe"


def test_new_never_overwrites(folder: Path) -> None:
    assert optimize("new", "--preset", "int8-cpu", "-o", "new.yaml", folder=folder).returncode == 0
    assert optimize("show", "new.yaml", folder=folder).returncode == 0
    done = optimize("new", "--preset", "int8-cpu", "-o", "new.yaml", folder=folder)
    assert done.returncode == 2
    assert "new.yaml: exists already." in done.stderr
