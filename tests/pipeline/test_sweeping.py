"""A matrix of recipes: on this machine, and on a real Ray cluster whose worker is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from optimize.cli import sweep
from optimize.errors import RecipeError
from optimize.pipeline import sweeping
from optimize.report import front
from optimize.sweep_facts import Point
from tests.support import tiny

ROOT = Path(__file__).parents[2]
VARIED = "passes=clean,clean.dead_code"


def point(label: str, cosine: float, latency: float, size: int, verdict: str = "PASS") -> Point:
    return Point(label=label, verdict=verdict, cosine=cosine, latency_ms=latency, size_bytes=size)


def test_the_front_holds_what_nothing_else_beats() -> None:
    points = front.with_front(
        [
            point("accurate", 0.999, 10, 100),
            point("fast", 0.99, 5, 50),
            point("beaten", 0.98, 6, 60),
            point("broken", 1.0, 1, 1, "ERROR"),
        ]
    )
    assert {item.label for item in points if item.is_on_front} == {"accurate", "fast"}


def test_a_sweep_runs_every_combination_and_writes_table_and_plot(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "optimize", "sweep", str(recipe), "--store", "store", "-o", "out", "--vary", VARIED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert [item["verdict"] for item in points] == ["PASS", "PASS"]
    assert any(item["is_on_front"] for item in points)
    assert "<svg" in (tmp_path / "out" / "sweep.html").read_text()
    for item in points:
        own = json.loads((tmp_path / "out" / item["label"] / "report.json").read_text())
        assert own["sweep"] == {"label": item["label"], "points": points}
        assert "runs of its sweep" in (tmp_path / "out" / item["label"] / "report.html").read_text()


def test_varied_values_may_hold_commas_inside_brackets() -> None:
    assert sweep._varied(["passes=[clean],[clean, fuse]", "bits=7, 8"]) == {
        "passes": ["[clean]", "[clean, fuse]"],
        "bits": ["7", "8"],
    }
    nested = "[clean, {quantize.int8: {skip: [a, b]}}]"
    assert sweep._varied([f"passes=[clean],{nested}"]) == {"passes": ["[clean]", nested]}


def test_a_bad_value_is_found_before_anything_runs(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path)
    with pytest.raises(RecipeError, match="no_such_pass"):
        sweeping.tasks([recipe], {"passes": ["clean", "no_such_pass"]})


def test_long_values_give_folders_names_that_a_file_system_takes(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path)
    text = recipe.read_text().replace("passes: clean", "passes: {quantize.int8: {}}")
    recipe.write_text(text)
    names = ", ".join(f"encoder.layer.{number}.attention" for number in range(20))
    values = [f"{{quantize.int8: {{skip: [{names}, {last}]}}}}" for last in ("a", "b")]
    first, second = (task.label for task in sweeping.tasks([recipe], {"passes": values}))
    assert first != second
    assert max(len(label.encode()) for label in (first, second)) <= sweeping.LONGEST_LABEL
    assert first.startswith(f"{recipe.stem}-{{quantize.int8: ")


@pytest.mark.slow
def test_a_killed_worker_of_a_ray_cluster_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    recipe = tiny.write_recipe(tmp_path)
    wanted = sweeping.tasks([recipe], {"passes": ["clean", "clean.dead_code"]})
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in psutil.process_iter(["name", "cmdline"]):
                if "ray::run_one" in " ".join(process.info["cmdline"] or ()):
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one)
    thread.start()
    points = sweeping.run(
        wanted,
        store=tmp_path / "store",
        output=tmp_path / "out",
        workers=1,
        ray_address="local",
        cpus_per_task=1,
        gpus_per_task=0,
        on_done=lambda *_: None,
    )
    thread.join()
    assert killed
    assert [item.verdict for item in points] == ["PASS", "PASS"], points
