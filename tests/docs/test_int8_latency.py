"""docs/int8-latency.md shows what was timed; the benchmark times what lies in a folder."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.benchmarks import int8_latency, processor
from tests.benchmarks import int8_latency_page as pages
from tests.benchmarks.fusion_where import GROUPS
from tests.benchmarks.quantization_cells import file_name
from tests.benchmarks.quantization_table import BASELINE, ROOT

OURS = "int8 | dynamic, per channel | ours"
FILES = sorted(pages.FIGURES.glob("*.json"))
KNOWN = {"machine", "vendor", "family", "model", "instruction_sets", "cpus"}


def _row(wall: float, cpu: float) -> dict[str, float]:
    return {"wall_ms": 100 * wall, "wall_ms_ratio": wall, "cpu_ms": 200 * cpu, "cpu_ms_ratio": cpu}


def _facts(*ratios: tuple[float, float]) -> dict[str, Any]:
    """Figures of a run with one repeat for each pair of ratios, wall and CPU."""
    return {
        "date": "2026-01-02",
        "processor": {
            "machine": "x86_64", "vendor": "V", "family": 1, "model": 2, "instruction_sets": ["avx2"], "cpus": 4,
        },
        "pinned_to": [2, 3],
        "onnxruntime": "1.0",
        "numpy": "2.0",
        "batch": "8 x 128 tokens",
        "rounds": 5,
        "runs": [{BASELINE: _row(1, 1), OURS: _row(*pair)} for pair in ratios],
        "profile": [
            {BASELINE: dict(zip(GROUPS, (40, 20, 40), strict=True)), OURS: dict(zip(GROUPS, mine, strict=True))}
            for mine in ((30, 10, 8), (50, 10, 10), (40, 10, 9))
        ],
    }  # fmt: skip


def test_the_page_shows_the_figures() -> None:
    assert len(FILES) >= 2
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_medians_quartiles_and_ratios_follow_from_the_samples(path: Path) -> None:
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        for row in run.values():
            for key in ("wall_ms", "cpu_ms"):
                if f"{key}_samples" not in row:
                    continue
                values, baseline = (np.array(of[f"{key}_samples"]) for of in (row, run[BASELINE]))
                for name, expected in int8_latency.summary(key, values, baseline).items():
                    assert row[name] == pytest.approx(expected)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_figures_describe_the_processor_without_naming_a_machine(path: Path) -> None:
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert set(facts["processor"]) == KNOWN
    assert set(facts["processor"]["instruction_sets"]) <= set(processor.LABELS)
    assert not {"host", "hostname", "node"} & set(facts)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([(0.59, 0.6)], "wall yes, CPU yes"),
        ([(0.61, 0.7), (0.62, 0.7)], "wall no, CPU no"),
        ([(0.5, 0.7), (0.59, 0.55), (0.61, 0.7)], "wall in 2 of 3 repeats, CPU in 1 of 3 repeats"),
    ],
)
def test_the_goal_is_reached_in_all_repeats_some_or_none(ratios: list[tuple[float, float]], said: str) -> None:
    assert pages.reached(_facts(*ratios), OURS) == said


def test_a_table_has_the_median_over_the_repeats_and_their_range() -> None:
    shown = pages.section("2026-01-02-a.json", _facts((0.5, 0.6), (0.8, 0.65), (0.55, 0.7)))
    assert "## 2026-01-02-a\n" in shown
    assert "family 1, model 2, avx2; 2 of 4 CPUs; ONNX Runtime 1.0, numpy 2.0; 3 × 5 rounds" in shown
    assert f"| {pages.name(OURS)} | 55 (50–80) | 0.55 (0.50–0.80) | 130 (120–140) | 0.65 (0.60–0.70) |" in shown
    assert f"| {pages.name(OURS)} | 40.0 | 10.0 | 9.0 | 59.0 |" in shown
    single = pages.section("a.json", _facts((0.5, 0.6)) | {"pinned_to": [], "numpy": None, "note": "A note."})
    assert f"| {pages.name(OURS)} | 50 | 0.50 | 120 | 0.60 |" in single
    assert "4 CPUs, not pinned; ONNX Runtime 1.0; 1 × 5 rounds" in single
    assert "\nA note.\n" in single


def test_the_decision_says_what_the_products_leave_for_the_rest() -> None:
    fits = pages.decision({"a.json": _facts((0.55, 0.6))})
    assert f"| [AVX2](int8-latency/a.json) | {pages.name(OURS)} | 0.40 | 0.19 | 0.55 | wall yes, CPU yes |" in fits
    assert "which would leave 0.20 for all else, and that takes 0.19. By the clock 0.55" in fits
    slow = copy.deepcopy(_facts((0.7, 0.7)))
    for one in slow["profile"]:
        one[OURS][GROUPS[0]] += 10
    assert "which would leave 0.10 for all else, and that takes 0.19. By the clock 0.70" in pages.decision(
        {"a": slow}
    )


def test_a_page_without_figures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FIGURES", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no figures in .*--time FOLDER"):
        pages.page()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of the arguments --make --time --page is required"),
        (["--page", "--make", "x"], "not allowed with argument"),
        (["--time", "x"], "belong together"),
        (["--page", "--out", "x.json"], "belong together"),
        (["--page", "--repeats", "0"], "at least 1"),
        (["--page", "--without-amx"], "--without-amx belongs to --time"),
        (["--time", "nowhere", "--out", "x.json"], "ONNX_Runtime.onnx and another model; make them with --make"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        int8_latency.main(arguments)
    assert said in capsys.readouterr().err


def _tiny(path: Path, products: int) -> None:
    """A chain of matrix products on the benchmark's inputs."""
    steps = "".join(f"x{i + 1} = MatMul(x{i}, w)\n" for i in range(products))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        tiny (int64[8, 128] input_ids, int64[8, 128] attention_mask) => (float[8, 128] x{products})
        <float[128, 128] w> {{
            both = Add(input_ids, attention_mask)
            x0 = Cast<to = 1>(both)
            {steps}
        }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((128, 128), 1e-2, np.float32), "w"))
    onnx.save(model, path)


def test_all_models_of_a_folder_are_timed_and_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "pin", lambda count: [0])
    _tiny(tmp_path / file_name(BASELINE), 40)
    _tiny(tmp_path / file_name(OURS), 1)
    out = tmp_path / "new" / "x.json"
    int8_latency.main(["--time", str(tmp_path), "--out", str(out), "--rounds", "3", "--repeats", "2"])
    facts = json.loads(out.read_text(encoding="utf-8"))
    assert [list(run) for run in facts["runs"]] == [[BASELINE, OURS]] * 2
    for run in facts["runs"]:
        assert len(run[OURS]["cpu_ms_samples"]) == 3
        assert run[BASELINE]["wall_ms_ratio"] == 1
        assert 0 < run[OURS]["wall_ms_ratio"] < 1
    assert [set(one[OURS]) for one in facts["profile"]] == [set(GROUPS)] * 2
    assert pages.name(OURS) in pages.decision({out.name: facts}) + pages.section(out.name, facts)


def test_timing_and_the_page_need_no_torch_onnx_or_project_dependency() -> None:
    absent = ("torch", "onnx", "onnx_ir", "pydantic", "transformers")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import tests.benchmarks.int8_latency"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_processor_is_described_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor.CPUINFO.write_text(
        "processor\t: 0\nvendor_id\t: V\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Secret\n"
        "flags\t\t: fpu avx2 amx_int8_not avx512_vnni\n\nprocessor\t: 1\nmodel\t\t: 9\n"
    )
    found = processor.describe()
    assert (found["vendor"], found["family"], found["model"]) == ("V", 6, 207)
    assert found["instruction_sets"] == ["avx512_vnni", "avx2"]
    assert processor.describe(without=["avx512_vnni"])["instruction_sets"] == ["avx2"]
    assert "Secret" not in json.dumps(found)
    processor.CPUINFO.write_text("processor\t: 0\nFeatures\t: fp asimddp i8mm\n")
    assert processor.describe()["instruction_sets"] == ["i8mm", "asimddp"]
    processor.CPUINFO.unlink()
    assert processor.describe()["family"] is None


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="AMX is asked for on x86-64 Linux alone"
)
def test_amx_is_refused_and_nothing_else() -> None:
    code = (
        "import ctypes; from tests.benchmarks import processor; call = ctypes.CDLL(None, use_errno=True).syscall\n"
        "def asked(what, value): return call(158, what, ctypes.c_ulong(value)), ctypes.get_errno()\n"
        "before = asked(0x1022, 0); processor.refuse_amx()\n"
        "print(asked(0x1023, 18) == (-1, 1), asked(0x1022, 0) == before)"  # asked for, and what there is
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def test_pinning_takes_one_cpu_of_a_core_and_the_first_cores_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[list[int]] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    monkeypatch.setattr("os.sched_setaffinity", lambda _, cpus: pinned.append(cpus), raising=False)
    monkeypatch.setattr(processor, "TOPOLOGY", tmp_path)
    for cpu in range(6):
        place = tmp_path / f"cpu{cpu}/topology/thread_siblings_list"
        place.parent.mkdir(parents=True)
        place.write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    assert processor.pin(2) == [0, 4]
    assert processor.pin(4) == []
    assert pinned == [[0, 4]]
