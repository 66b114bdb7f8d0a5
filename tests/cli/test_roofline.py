"""`optimize roofline`: one floor a target, from the model alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_model(tmp_path / "tiny.onnx")
    return tmp_path


def roofline(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", "roofline", "tiny.onnx", *words],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_faster_target_has_a_lower_floor_and_a_larger_batch_a_higher_one(folder: Path) -> None:
    floors = []
    for batch in ("1", "4096"):
        done = roofline(
            folder, "--target", "h200", "--target", "rtx-4000-ada", "--size", f"batch={batch}", "--json"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["h200"]["floor_ms"] < found["rtx-4000-ada"]["floor_ms"]
        assert found["h200"]["operations"] == 2 * int(batch) * (64 * 64 + 64 * 8)
        floors.append(found["h200"]["floor_ms"])
    assert floors[0] < floors[1]


def test_this_processor_is_among_them_with_measured_rates(folder: Path) -> None:
    done = roofline(folder, "--target", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("cpu ")


def test_wrong_words_are_told_what_would_do(folder: Path) -> None:
    for words, told in (
        (("--target", "l40x"), "no target is called 'l40x'"),
        (("--target", "cpu-amx"), "no peak rates are known"),
        (("--target", "h100", "--size", "tokens=3"), "no input has an axis 'tokens'; there are: batch"),
        (("--target", "h100", "--size", f"batch={10**30}"), "a whole number from 1 to 2,147,483,647"),
        (("--target", "h100", "--size", "batch=\u00b2"), "expected AXIS=N"),
    ):
        done = roofline(folder, *words)
        assert done.returncode == 2
        assert told in done.stderr
