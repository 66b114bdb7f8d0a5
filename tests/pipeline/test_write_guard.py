"""A process that runs the user's code cannot write into the store, where Linux's Landlock is there."""

from __future__ import annotations

import ctypes
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
import glob, os, tempfile
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
    open({beside!r}, "w").write("and so do files of the user's own")
    rng = np.random.default_rng(0)
    for _ in range(16):
        yield {{"x": rng.normal(size=(1, 64)).astype(np.float32)}}
"""


@needs_landlock
def test_the_users_code_can_write_where_it_likes_but_not_into_the_store(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "kept").mkdir()
    store, beside = tmp_path / "kept" / "store", tmp_path / "work" / "file"
    tiny.write_recipe(tmp_path / "work", tiny.RECIPE.replace("data: random", "data: data.py:samples"))
    (tmp_path / "work" / "data.py").write_text(ATTACK.format(store=str(store), beside=str(beside)))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "optimize",
            "run",
            "tiny.yaml",
            "--store",
            str(store),
            "-o",
            "out",
            "--until",
            "build",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert beside.exists()
    assert not (store / "planted").exists()
    files = [path for path in (store / "objects").rglob("*") if path.is_file()]
    assert files
    assert all(path.read_bytes() != b"changed" for path in files)


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
