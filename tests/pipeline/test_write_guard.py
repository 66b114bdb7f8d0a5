"""A process that runs the user's code cannot write into the store, where Linux's Landlock is there."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny

ROOT = Path(__file__).parents[2]
HAS_LANDLOCK = (
    sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_size_t(0), 1) >= 3
)
needs_landlock = pytest.mark.skipif(not HAS_LANDLOCK, reason="this kernel has no Landlock of version 3")

ATTACK = """
import glob, os, subprocess, tempfile
import numpy as np

def samples():
    for path in glob.glob({store!r} + "/**", recursive=True):
        try:
            if os.path.isfile(path):
                os.chmod(path, 0o644)
                open(path, "w").write("changed")
        except OSError:
            pass
    try:
        open({store!r} + "/planted", "w").write("x")
    except OSError:
        pass
    with tempfile.TemporaryFile() as file:
        file.write(b"temporary files still work")
    of_a_child = subprocess.run(["mktemp"], check=True, capture_output=True, text=True).stdout.strip()
    os.remove(of_a_child)
    open({beside!r}, "w").write("and so do files of the user's own")
    rng = np.random.default_rng(0)
    for _ in range(16):
        yield {{"x": rng.normal(size=(1, 64)).astype(np.float32)}}
"""


PER_PASS = tiny.RECIPE.replace("  batch: 8\n", "  batch: 8\n  attribution: passes\n  metric: metric.py:score\n")


def run_until(step: str, store: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["run", "tiny.yaml", "--store", str(store), "-o", "out", "--until", step]
    return subprocess.run(
        [sys.executable, "-m", "optimize", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def assert_whole(store: Path) -> None:
    assert not (store / "planted").exists()
    files = [path for path in (store / "objects").rglob("*") if path.is_file()]
    assert files
    assert all(path.read_bytes() != b"changed" for path in files)


@needs_landlock
def test_the_users_code_can_write_where_it_likes_but_not_into_the_store(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "kept").mkdir()
    store, beside = tmp_path / "kept" / "store", tmp_path / "work" / "file"
    tiny.write_recipe(tmp_path / "work", tiny.RECIPE.replace("data: random", "data: data.py:samples"))
    (tmp_path / "work" / "data.py").write_text(ATTACK.format(store=str(store), beside=str(beside)))
    result = run_until("build", store, tmp_path / "work")
    assert result.returncode == 0, result.stderr
    assert beside.exists()
    assert_whole(store)


@needs_landlock
def test_a_metric_that_is_asked_after_every_pass_cannot_either(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "kept").mkdir()
    store, beside = tmp_path / "kept" / "store", tmp_path / "work" / "file"
    tiny.write_recipe(tmp_path / "work", PER_PASS)
    attack = ATTACK.partition("    rng = ")[0].replace("def samples()", "def score(outputs, labels)")
    (tmp_path / "work" / "metric.py").write_text(
        attack.format(store=str(store), beside=str(beside)) + "    return {'one': 1.0}\n"
    )
    result = run_until("passes", store, tmp_path / "work")
    assert result.returncode == 0, result.stderr
    assert beside.exists()
    assert_whole(store)


def test_a_changed_metric_is_asked_again_after_every_pass(tmp_path: Path) -> None:
    tiny.write_recipe(tmp_path, PER_PASS)
    (tmp_path / "metric.py").write_text(
        "from worth import WORTH\ndef score(outputs, labels): return {'worth': WORTH}\n"
        "def other(outputs, labels): return {'worth': 3.0}\n"
    )
    found = []
    for worth, function in ((1.0, "score"), (2.0, "score"), (2.0, "other")):
        (tmp_path / "worth.py").write_text(f"WORTH = {worth}\n")
        (tmp_path / "tiny.yaml").write_text(PER_PASS.replace(":score", f":{function}"))
        result = run_until("passes", tmp_path / "store", tmp_path)
        assert result.returncode == 0, result.stderr
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        found.append(next(item["accuracy"]["metrics"]["worth"] for item in report["passes"] if item["accuracy"]))
    assert found == [1.0, 2.0, 3.0]


@needs_landlock
def test_processes_that_it_starts_are_held_too(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "tmp" / "mine").mkdir(parents=True)
    (store / "entry").write_text("whole")
    attack = f"echo x > {store}/entry; rm -f {store}/entry; mv {store}/entry {store}/gone"
    program = f"""
import subprocess, pathlib
from optimize.pipeline import write_guard
store = pathlib.Path({str(store)!r})
assert write_guard.protect(store, [store / "tmp" / "mine"])
subprocess.run(["sh", "-c", {attack!r}], check=False)
(store / "tmp" / "mine" / "result").write_text("x")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    assert (store / "entry").read_text() == "whole"
    assert (store / "tmp" / "mine" / "result").exists()
