"""docs/gpu.md shows the figures that were measured, and says missed where a goal is missed."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import gpu_page
from tests.benchmarks.gpu.table import COMPILED, goals, table
from tests.support import reports

FIGURES = gpu_page.runs()
FAST = {"median_ms": 0.5, "p25_ms": 0.5, "p75_ms": 0.5, "over_compile": 0.5, "speedup_over_fp32_eager": 4.0}
CASE: dict[str, Any] = {
    "title": "a case",
    "goal_over_compile": 0.9,
    "error_limit": 0.01,
    "best_within_error": "ours: A",
    "contenders": {"ours: B": {"failed": "why"}, "ours: A": {**FAST, "relative_error": 0.001}},
}


def test_the_page_shows_the_figures() -> None:
    assert len(FIGURES) >= 2
    assert gpu_page.PAGE.read_text(encoding="utf-8") == gpu_page.page()


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_medians_and_ratios_follow_from_the_samples(path: Path) -> None:
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"].values():
        rows = {name: row for name, row in case["contenders"].items() if "samples_ms" in row}
        medians = {name: np.median(row["samples_ms"]) for name, row in rows.items()}
        for name, row in rows.items():
            compiled = next(medians[name] for name in medians if name.startswith("torch.compile"))
            eager = medians["torch eager FP32"]
            assert row["median_ms"] == pytest.approx(medians[name])
            assert row["over_compile"] == pytest.approx(medians[name] / compiled)
            assert row["speedup_over_fp32_eager"] == pytest.approx(eager / medians[name])


@pytest.mark.parametrize("path", gpu_page.trials(), ids=lambda path: path.stem)
def test_a_trials_medians_ratios_and_best_kernels_follow_from_what_was_measured(path: Path) -> None:
    facts = json.loads(path.read_text(encoding="utf-8"))
    for rows in (1, 16):
        timed = {name: row for name, row in facts[f"plan-{rows}"].items() if "samples_ms" in row}
        medians = {name: np.median(row["samples_ms"]) for name, row in timed.items()}
        for name, row in timed.items():
            assert row["median_ms"] == pytest.approx(medians[name])
            assert row["over_compile"] == pytest.approx(medians[name] / medians[COMPILED])
        raw = facts[f"raw-{rows}"]
        for shape, best in raw["best"].items():
            assert best == min(raw["configs"], key=lambda name: raw["configs"][name][shape]["us"])


@pytest.mark.parametrize("path", [*FIGURES, *gpu_page.trials()], ids=lambda path: path.stem)
def test_figures_name_no_folder_of_the_machine(path: Path) -> None:
    assert not gpu_page.FOLDERS.search(path.read_text(encoding="utf-8"))


def test_a_run_is_added_as_measured_without_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_page, "FIGURES", tmp_path / "figures")
    case = copy.deepcopy(CASE)
    case["contenders"]["ours: A"]["plan"] = "/somewhere/engine.plan"
    case["contenders"]["ours: B"]["failed"] = "library /some/where/lib.so.1 is not there: 3.5 GB/s"
    result = tmp_path / "benchmark.json"
    result.write_text(json.dumps({"rounds": 3, "cases": {"encoder": case, "decode-1": CASE}}))
    path = gpu_page.add(result, "2026-01-02")
    assert path.name == "2026-01-02-encoder-decode-1.json"
    added = json.loads(path.read_text())["cases"]["encoder"]["contenders"]
    assert added["ours: A"] == CASE["contenders"]["ours: A"]
    assert added["ours: B"] == {"failed": "library lib.so.1 is not there: 3.5 GB/s"}


def test_a_second_run_of_a_day_is_put_after_the_first_and_the_same_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_page, "FIGURES", tmp_path / "figures")
    result = tmp_path / "benchmark.json"
    for rounds in (3, 4, 4):
        result.write_text(json.dumps({"rounds": rounds, "cases": {"decode-1": CASE}}))
        gpu_page.add(result, "2026-01-02")
    result.write_text(json.dumps({"rounds": 5, "cases": {"decode-16": CASE}}))
    gpu_page.add(result, "2026-01-02")
    assert [path.stem for path in gpu_page.runs()] == [f"2026-01-02-decode-{end}" for end in ("1", "1-2", "16")]
    assert json.loads((tmp_path / "figures/2026-01-02-decode-1.json").read_text())["rounds"] == 3


def test_goals_are_reached_by_a_variant_that_is_fast_and_near() -> None:
    assert [said for _, said in goals(CASE)] == [
        "reached (ours: A: 0.50, relative error 0.001)",
        "reached (ours: A: 4.00×, relative error 0.001)",
    ]


def test_a_slow_variant_misses_both_goals() -> None:
    case = copy.deepcopy(CASE)
    case["contenders"]["ours: A"] |= {"over_compile": 0.91, "speedup_over_fp32_eager": 1.99}
    assert [said for _, said in goals(case)] == [
        "**missed** (ours: A: 0.91, relative error 0.001)",
        "**missed** (ours: A: 1.99×, relative error 0.001)",
    ]


def test_a_fast_variant_beyond_the_error_limit_misses_both_goals() -> None:
    case = copy.deepcopy(CASE) | {"best_within_error": None}
    case["contenders"]["ours: A"]["relative_error"] = 0.02
    for _, said in goals(case):
        assert said.startswith("**missed** (ours: A: ")
        assert "relative error 0.02: none of ours is within the limit" in said


def test_twice_what_torch_is_off_by_is_allowed_where_that_is_more_than_the_limit() -> None:
    case = copy.deepcopy(CASE)
    case["contenders"]["ours: A"]["relative_error"] = 0.05
    case["contenders"][COMPILED] = {"relative_error": 0.026}
    assert [(goal[-7:], said[:8]) for goal, said in goals(case)] == [("≤ 0.052", "reached ")] * 2
    case["contenders"][COMPILED] = {"relative_error": 0.024}
    assert all(said.startswith("**missed**") for _, said in goals(case))


def test_a_case_without_a_variant_that_ran_misses_both_goals() -> None:
    case = copy.deepcopy(CASE) | {"best_within_error": None}
    del case["contenders"]["ours: A"]
    assert {said for _, said in goals(case)} == {"**missed** (no variant of ours ran)"}


def test_a_page_without_the_marks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_page, "PAGE", tmp_path / "gpu.md")
    gpu_page.PAGE.write_text("# On a GPU\n")
    with pytest.raises(ValueError, match="has no place for goals"):
        gpu_page.page()


def test_the_table_is_sorted_by_time_and_says_why_a_variant_has_none() -> None:
    lines = table(CASE).splitlines()
    assert lines[4].startswith("| ours: A | 0.500 |")
    assert lines[5].startswith("| ours: B | failed: why |")
    assert len({line.count("|") for line in lines[2:6]}) == 1


def test_the_recipes_case_takes_times_and_errors_from_the_products_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "gpu"))
    minilm = importlib.import_module("minilm")
    medians = {"original": 2.0, "compiled": 1.0, "exported": 0.9, "optimized": 0.25}
    timed = reports.passing().throughput
    assert timed is not None
    contenders = tuple(
        reports.latency(name, name, median, seed).model_copy(update={"device": "cuda"})
        for seed, (name, median) in enumerate(medians.items())
    )
    stages = (reports.accuracy("export", 1e-6), reports.accuracy("model", 1e-4), reports.accuracy("engine", 2e-3))
    report = reports.passing(throughput=timed.model_copy(update={"contenders": contenders}), accuracy=stages)
    facts = minilm.facts(json.loads(report.model_dump_json()))

    ours = facts["contenders"]["ours: recipe minilm-fp16-tensorrt"]
    assert ours["relative_error"] == 2e-3
    assert ours["speedup_over_fp32_eager"] == pytest.approx(8.0, rel=0.1)
    assert ours["over_compile"] == pytest.approx(0.25, rel=0.1)
    assert facts["contenders"]["TensorRT-RTX, plain export FP32"]["relative_error"] is None
    ((goal, said),) = goals(facts)
    assert goal.startswith("2 to 6 × over FP32 eager")
    assert said.startswith("reached")
    assert "| 0.002 |" in table(facts)
    assert table(facts).count("| not measured |") == 3
