"""A whole run on a small model: results, reuse, failures and verdicts, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from tests.support import tiny


def optimize(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**__import__("os").environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=cwd,
    )


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return optimize("run", "tiny.yaml", "--store", "store", "-o", "out", *words, cwd=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_recipe(tmp_path)
    return tmp_path


def report(folder: Path) -> dict:
    return json.loads((folder / "out" / "report.json").read_text())


def test_a_run_ends_with_model_engine_recipe_and_reports(folder: Path) -> None:
    result = run(folder)
    assert result.returncode == 0, result.stderr
    for name in ("model.onnx", "report.json", "report.md", "report.html", "recipe.resolved.yaml"):
        assert (folder / "out" / name).stat().st_size > 0
    assert list((folder / "out" / "engine").iterdir())
    found = report(folder)
    assert found["verdict"] == "PASS"
    assert [stage["outcome"] for stage in found["stages"]] == ["done"] * len(found["stages"])
    assert {item["stage"] for item in found["accuracy"]} == {"export", "model", "engine"}
    assert {item["device"] for item in found["throughput"]["contenders"]} == {"cpu"}
    assert {item["contender"] for item in found["throughput"]["contenders"]} == {
        "original",
        "exported",
        "optimized",
    }


def test_a_second_run_reuses_everything_in_about_a_second(folder: Path) -> None:
    run(folder)
    started = time.monotonic()
    result = run(folder)
    seconds = time.monotonic() - started
    assert result.returncode == 0
    assert {stage["outcome"] for stage in report(folder)["stages"]} == {"reused"}
    assert seconds < 8  # about one on an idle machine; a shared one may take longer, recomputing takes more


def test_the_resolved_recipe_gives_the_same_artifacts(folder: Path) -> None:
    run(folder)
    first = {item["label"]: item["sha256"] for item in report(folder)["artifacts"]}
    again = optimize("run", "out/recipe.resolved.yaml", "--store", "other", "-o", "again", cwd=folder)
    assert again.returncode == 0, again.stderr
    second = json.loads((folder / "again" / "report.json").read_text())
    assert {item["label"]: item["sha256"] for item in second["artifacts"]} == first


def test_the_resolved_recipe_is_the_same_bytes_in_any_output_folder(folder: Path) -> None:
    import hashlib

    run(folder)
    near = (folder / "out" / "recipe.resolved.yaml").read_bytes()
    assert report(folder)["recipe_sha256"] == hashlib.sha256(near).hexdigest()
    again = optimize("run", "tiny.yaml", "--store", "store", "-o", "deep/er/out", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "deep" / "er" / "out" / "recipe.resolved.yaml").read_bytes() == near


def test_a_changed_model_is_computed_again(folder: Path) -> None:
    run(folder)
    tiny.write_model(folder / "tiny.onnx", seed=1)
    run(folder)
    outcomes = {stage["name"]: stage["outcome"] for stage in report(folder)["stages"]}
    assert outcomes["capture"] == "done"
    assert outcomes["passes"] == "done"


def test_a_gate_that_does_not_hold_ends_with_1_and_says_which(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(tiny.RECIPE + "  size.max: 1KB\n")
    result = run(folder)
    assert result.returncode == 1
    assert "size" in result.stdout
    assert report(folder)["verdict"] == "FAIL"


def test_a_failed_stage_ends_with_4_and_the_report_of_what_was_done(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(
        tiny.RECIPE.replace("  - ${passes}", "  - clean.fold_constants: {expect: {fold: 99}}")
    )
    result = run(folder)
    assert result.returncode in (2, 4), result.stderr
    assert "Traceback" not in result.stderr
    if result.returncode == 4:
        assert report(folder)["verdict"] == "ERROR"
        outcomes = {stage["name"]: stage["outcome"] for stage in report(folder)["stages"]}
        assert outcomes["capture"] == "done"
        assert outcomes["passes"] == "failed"
        assert outcomes["build"] == "not run"


def test_a_failure_is_not_cached(folder: Path) -> None:
    broken = tiny.RECIPE.replace("  - ${passes}", "  - clean.fold_constants: {expect: {fold: 99}}")
    (folder / "tiny.yaml").write_text(broken)
    run(folder)
    (folder / "tiny.yaml").write_text(tiny.RECIPE)
    assert run(folder).returncode == 0


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("missing", 2, "no file"),
        ("empty", 2, "empty"),
        ("garbage", 2, "not an ONNX file"),
        ("nan", 2, "NaN"),
    ],
)
def test_a_bad_model_is_one_line(folder: Path, damage: str, code: int, words: str) -> None:
    path = folder / "tiny.onnx"
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 400)
    else:
        model = onnx.load(path)
        weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
        weight[0, 0] = float("nan")
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
        onnx.save(model, path)
    result = run(folder)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_check_shows_the_plan_and_touches_nothing(folder: Path) -> None:
    result = optimize("check", "tiny.yaml", "--store", "store", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "capture" in result.stdout
    assert not (folder / "store").exists()


def test_interrupting_a_run_ends_with_130_and_the_next_one_goes_on(folder: Path) -> None:
    import os
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "optimize", "run", "tiny.yaml", "--store", "store", "-o", "out"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "capture" in line:
            break
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    result = run(folder)
    assert result.returncode == 0
    outcomes = {stage["name"]: stage["outcome"] for stage in report(folder)["stages"]}
    assert outcomes["capture"] == "reused"


def test_an_infinite_number_reaches_the_data_function_and_is_told_apart(folder: Path) -> None:
    (folder / "data.py").write_text(
        "import numpy as np\n"
        "def samples(limit):\n"
        "    for seed in range(8):\n"
        "        x = np.random.default_rng(seed).standard_normal(64).astype(np.float32)\n"
        "        yield {'x': np.clip(x, -limit, limit)}\n"
    )
    for limit in (".inf", "0.5"):
        data = f"  data: data.py:samples\n  arguments: {{limit: {limit}}}"
        (folder / "tiny.yaml").write_text(tiny.RECIPE.replace("  data: random", data))
        result = run(folder)
        assert result.returncode == 0, result.stderr
        feeds = next(stage for stage in report(folder)["stages"] if stage["name"] == "feeds")
        assert feeds["outcome"] == "done"
