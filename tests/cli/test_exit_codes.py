"""Every way out of the command line has its exit code; 1 is a failed gate and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def optimize(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *words], capture_output=True, text=True, check=False, cwd=ROOT, **more
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["passes", "ls"], 0),
        (["frobnicate"], 2),
        (["run"], 2),
        (["run", "no-such-recipe.yaml"], 2),
        (["inspect", "no-such-model.onnx"], 2),
        (["--log-level", "loud", "passes", "ls"], 2),
        (["bench", "README.md"], 2),
        (["run", "recipes/digits-int8-cpu.yaml", "--fresh", "pases"], 2),
    ],
)
def test_each_way_out_has_its_code_and_no_traceback(words: list[str], code: int) -> None:
    result = optimize(*words)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [["passes", "ls"], ["run", "--help"]])
def test_a_reader_that_goes_away_is_no_failed_gate(words: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        result = subprocess.run(
            [sys.executable, "-u", "-m", "optimize", *words],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
    assert result.returncode == 141, result.stderr
    assert "Traceback" not in result.stderr


def test_a_defect_of_ours_is_neither_1_nor_a_traceback() -> None:
    code = "from optimize.cli import main, passes\nmain.app.command('boom')(lambda: 1 / 0)\nmain.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "boom"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 70
    assert "internal error: ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_the_machine_refuses_is_no_defect_of_ours(tmp_path: Path) -> None:
    long = tmp_path / "long.yaml"
    long.write_text(f"source: {{kind: onnx, path: '{'a' * 5000}'}}\n")
    result = optimize("check", str(long))
    assert result.returncode == 4, result.stderr
    assert result.stderr.startswith("error: ")
    assert "File name too long" in result.stderr
    assert "defect" not in result.stderr
