"""A killed, starved or racing run leaves nothing behind and ends with the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from optimize.pipeline.store import Store
from tests.reliability import crash
from tests.support import tiny

RECIPE = crash.RECIPE


def run(recipe: Path, store: Path, output: Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        crash.command(recipe, store, output), capture_output=True, text=True, check=False, timeout=300, **more
    )


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_with_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    facts = crash.harness(RECIPE, kills=3, seed=1, scratch=tmp_path)
    assert facts["kills"] == 3


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        result = run(RECIPE, disk / "store", tmp_path / "out")
        assert result.returncode == 4, result.stderr
        assert "No space left" in result.stderr or "GB free" in result.stderr
        assert "Traceback" not in result.stderr
        assert not list((disk / "store" / "tmp").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_store_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = run(RECIPE, blocked / "store", tmp_path / "out")
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_store_that_vanishes_while_a_run_uses_it_is_a_failed_stage(tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = subprocess.Popen(
        crash.command(RECIPE, store, tmp_path / "out"), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any((store / "tmp").glob("*")) if (store / "tmp").is_dir() else True:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shutil.rmtree(store, ignore_errors=True)
    _, shown = process.communicate(timeout=300)
    assert process.returncode in (2, 4), shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_of_ten_runs_at_once_one_computes_each_step_and_nine_reuse_it(tmp_path: Path) -> None:
    store, recipe = tmp_path / "store", tiny.write_recipe(tmp_path)
    processes = [
        subprocess.Popen(
            crash.command(recipe, store, tmp_path / f"out-{number}"),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for number in range(10)
    ]
    shown = [process.communicate(timeout=300)[1] for process in processes]
    assert {process.returncode for process in processes} == {0}, shown
    steps = [line for text in shown for line in text.splitlines() if line.startswith(("✓", "↺"))]
    marks = Counter((line[2:28].strip(), line[0]) for line in steps)
    names = {name for name, _ in marks}
    assert {"capture", "passes", "build"} <= names
    assert marks == Counter({(name, mark): count for name in names for mark, count in (("✓", 1), ("↺", 9))})
    assert len({tuple(crash.artifacts(tmp_path / f"out-{number}").items()) for number in range(10)}) == 1
    assert crash.left_over(store, tmp_path / "out-0") == []


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    key = "cd" + "0" * 62
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with store.lock(key):
        store.publish(key, "s", store.workspace(key), facts={}, inputs={}, record={}, dependencies={})
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert store.lookup(key) is not None
    assert [entry.key for entry in store.entries()] == [key]
