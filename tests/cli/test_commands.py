"""Each command on a small model, as typed at a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import tiny

ROOT = Path(__file__).parents[2]


def optimize(
    *words: str, cwd: Path, path: tuple[Path, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
            "OPTIMIZE_STORE": str(cwd / "store"),
            **environment,
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_recipe(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32))
    return tmp_path


def test_convert_makes_a_smaller_verified_model_in_one_line(folder: Path) -> None:
    result = optimize("convert", "tiny.onnx", "--int8", "--evaluate", "data.npz", "-o", "out", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["verdict"] == "PASS"
    assert report["optimized"]["size_bytes"] < report["exported"]["size_bytes"] / 2
    assert (folder / "out" / "recipe.resolved.yaml").is_file()


def test_convert_fails_below_the_cosine_asked_for(folder: Path) -> None:
    words = ("convert", "tiny.onnx", "--int4", "--evaluate", "data.npz", "--min-cosine", "0.9999999", "-o", "out")
    result = optimize(*words, cwd=folder)
    assert result.returncode == 1, result.stderr


def test_inspect_counts_and_compares(folder: Path) -> None:
    one = json.loads(optimize("inspect", "tiny.onnx", "--json", cwd=folder).stdout)
    assert one["ops"] == {"MatMul": 2, "Identity": 1, "Relu": 1}
    assert one["parameters"] == 64 * 64 + 64 * 8
    both = optimize("inspect", "tiny.onnx", "tiny.onnx", cwd=folder)
    assert both.returncode == 0
    (row,) = [line.split() for line in both.stdout.splitlines() if line.strip().startswith("MatMul")]
    assert row == ["MatMul", "2", "2"]


def test_bench_times_two_models_in_turns(folder: Path) -> None:
    tiny.write_model(folder / "wide.onnx", seed=2)
    words = ("bench", "tiny.onnx", "wide.onnx", "--size", "batch=4", "--runs", "10", "--json")
    result = optimize(*words, cwd=folder)
    assert result.returncode == 0, result.stderr
    timed = json.loads(result.stdout)
    assert timed["shapes"] == {"x": [4, 64]}
    assert [len(item["samples_ms"]) for item in timed["contenders"]] == [10, 10]
    assert timed["speedups"]


def test_the_cache_lists_explains_and_makes_room(folder: Path) -> None:
    assert optimize("run", "tiny.yaml", "--until", "passes", "-o", "out", cwd=folder).returncode == 0
    (folder / "tiny.yaml").write_text(tiny.RECIPE.replace("passes: clean", "passes: clean.dead_code"))
    assert optimize("run", "tiny.yaml", "--until", "passes", "-o", "out", cwd=folder).returncode == 0
    listed = json.loads(optimize("cache", "ls", "--json", cwd=folder).stdout)
    assert [item["stage"] for item in listed] == ["capture", "passes", "passes"]
    explained = optimize("cache", "explain", listed[-1]["key"][:16], cwd=folder)
    assert explained.returncode == 0, explained.stderr
    assert f"differs from {listed[1]['key'][:12]} in: passes" in explained.stdout
    assert optimize("cache", "explain", "ffff-no-such-key", cwd=folder).returncode == 2
    assert optimize("cache", "prune", "--days", "-1", cwd=folder).returncode == 2
    kept = optimize("cache", "prune", "--days", "1", cwd=folder)
    assert kept.stdout.startswith("removed 0 steps")
    pruned = optimize("cache", "prune", "--all", cwd=folder)
    assert pruned.stdout.startswith("removed 3 steps")
    assert json.loads(optimize("cache", "ls", "--json", cwd=folder).stdout) == []


def test_passes_are_listed_and_shown_with_their_options(folder: Path) -> None:
    listed = {item["name"] for item in json.loads(optimize("passes", "ls", "--json", cwd=folder).stdout)}
    assert {"clean.dead_code", "fuse.attention", "cast.fp16", "quantize.int8"} <= listed
    shown = optimize("passes", "show", "quantize.int8", cwd=folder)
    assert "activations" in shown.stdout
    wrong = optimize("passes", "show", "quantize.int9", cwd=folder)
    assert wrong.returncode == 2
    assert "Did you mean 'quantize.int8'?" in wrong.stderr


def test_another_package_adds_a_pass_by_an_entry_point(folder: Path) -> None:
    site = folder / "site"
    info = site / "third_party-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[model_optimize.passes]\nextra.idle = third_party:Idle\n")
    (site / "third_party.py").write_text(
        "from passes.base import Pass, PassResult\n\n\n"
        'class Idle(Pass):\n    """Do nothing, and say so."""\n\n'
        "    def apply(self, model, context):\n        return PassResult(notes=('Nothing done.',))\n"
    )
    recipe = tiny.RECIPE.replace("passes: clean", "passes: extra.idle")
    (folder / "tiny.yaml").write_text(recipe)
    assert "extra.idle" in optimize("passes", "ls", cwd=folder, path=(site,)).stdout
    result = optimize("run", "tiny.yaml", "--until", "passes", "-o", "out", cwd=folder, path=(site,))
    assert result.returncode == 0, result.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    assert [item["notes"] for item in report["passes"]] == [["Nothing done."]]


def test_doctor_finds_this_machine_ready_and_speaks_json(folder: Path) -> None:
    result = optimize("doctor", "--json", cwd=folder)
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout)["environment"]["libraries"]["onnxruntime"]


def test_the_shell_can_complete_commands(folder: Path) -> None:
    environment = {"_OPTIMIZE_COMPLETE": "complete_bash", "COMP_WORDS": "optimize ru", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'optimize'; from optimize.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert result.stdout.split() == ["run"]


def test_names_in_a_model_cannot_pass_for_lines_of_ours(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
    model = onnx.parser.parse_model(text)
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\nPASS"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N\nPASS"
    onnx.save(model, tmp_path / "model.onnx")
    for words in (("inspect",), ("roofline", "--target", "h200"), ("bench", "--runs", "5")):
        done = optimize(words[0], "model.onnx", *words[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not any(line.startswith("PASS") for line in done.stdout.splitlines()), done.stdout
