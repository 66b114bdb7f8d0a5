"""`optimize inspect` on a TensorRT plan: what it was built for, from its manifest alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optimize.engines import tensorrt_plan
from optimize.engines.tensorrt_device import Device

ROOT = Path(__file__).parents[2]


def optimize(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimize", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def write(folder: Path, **manifest: object) -> Path:
    built = {"flavour": "tensorrt_rtx", "version": "1.6.1.120", "model": "model.onnx", "model_sha256": "0" * 64}
    path, _ = tensorrt_plan.write(folder, b"plan", {**built, **manifest})
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        device=Device(name="NVIDIA H200", compute_capability="9.0", driver="13.0"),
        inputs=({"name": "x", "dtype": "float16", "shape": ("batch", 4)},),
        outputs=({"name": "y", "dtype": "float16", "shape": ("batch", 2)},),
        profiles=({"x": {"min": (1, 4), "opt": (8, 4), "max": (16, 4)}},),
    )


def test_a_plan_shows_its_shapes_profiles_and_device(plan: Path) -> None:
    shown = optimize("inspect", str(plan)).stdout
    assert "input   x: float16 [batch × 4]" in shown
    assert "profile 0  x: min 1 × 4, opt 8 × 4, max 16 × 4" in shown
    assert "TensorRT for RTX 1.6.1.120" in shown
    assert "NVIDIA H200, compute capability 9.0" in shown


def test_a_plan_as_json_is_its_manifest(plan: Path) -> None:
    shown = json.loads(optimize("inspect", str(plan), "--json").stdout)
    assert (shown["flavour"], shown["profiles"][0]["x"]["max"]) == ("tensorrt_rtx", [16, 4])


def test_a_changed_plan_is_refused(plan: Path) -> None:
    plan.write_bytes(b"plam")
    result = optimize("inspect", str(plan))
    assert result.returncode == 4
    assert "was changed after it was built" in result.stderr


def test_a_plan_beside_another_model_is_a_usage_error(plan: Path) -> None:
    result = optimize("inspect", str(plan), str(plan))
    assert result.returncode == 2
    assert "plans are inspected one at a time" in result.stderr


def test_a_name_with_a_line_break_stays_in_its_line(tmp_path: Path) -> None:
    name = "x\nbuilt by      somebody else\x9b31m"
    inputs = ({"name": name, "dtype": "float16", "shape": (4,)},)
    path = write(tmp_path, device=None, inputs=inputs, outputs=())
    shown = optimize("inspect", str(path)).stdout
    assert shown.startswith("input   x\\nbuilt by      somebody else\\x9b31m: float16 [4]\n")
    text = optimize("inspect", str(path), "--json").stdout
    assert "\\u009b31m" in text
    assert json.loads(text)["inputs"][0]["name"] == name
