"""`optimize diff` on real files: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from optimize.cli.diff import diff
from optimize.errors import UsageError
from tests.support import reports


def save(path: Path, scale: float) -> Path:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[batch, 16] x) => (float[batch, 16] y) { h = MatMul(x, w)  y = Relu(h) }"""
    )
    weight = (scale * np.random.default_rng(1).standard_normal((16, 16))).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    return path


def write(path: Path, **changes: Any) -> Path:
    path.write_text(reports.passing(**changes).model_dump_json())
    return path


def run(before: Path, after: Path, **options: Any) -> int:
    return diff(before, after, **{"data": None, "labels": None, "runs": 0, "threads": 1, **options})


def test_two_models_as_text_with_their_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(save(tmp_path / "a.onnx", 1.0), save(tmp_path / "b.onnx", 1.1), runs=5, seconds=5.0) == 0
    printed = capsys.readouterr().out
    assert "accuracy.relative_l2" in printed
    assert "0.100" in printed
    assert "latency.p50" in printed


@pytest.mark.parametrize(("limit", "code"), [("0.2", 0), ("0.05", 1)])
def test_a_gate_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    a, b = save(tmp_path / "a.onnx", 1.0), save(tmp_path / "b.onnx", 1.1)
    assert run(a, b, gates=[f"accuracy.relative_l2.max={limit}"]) == code
    assert ("missed" in capsys.readouterr().out) == bool(code)


def test_two_reports_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.json"), write(tmp_path / "b.json")
    assert run(a, b, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "reports"
    assert {item["direction"] for item in printed["figures"]} <= {"same", "no significant difference"}
    assert printed["figures"]


def test_markdown_and_a_page_escape_what_comes_from_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.json")
    b = write(tmp_path / "b.json", name="<script>alert(1)</script>")
    page = tmp_path / "diff.html"
    assert run(a, b, as_markdown=True, html=page) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("## No significant difference")
    assert "| figure | before | after | change |" in printed
    for text in (printed, page.read_text()):
        assert "<script>" not in text
        assert "&lt;script&gt;" in text


def test_a_folder_stands_for_its_report(tmp_path: Path) -> None:
    write(tmp_path / "report.json")
    assert run(tmp_path, tmp_path / "report.json") == 0


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("a.onnx", "missing.onnx", "there is no file"),
        ("a.onnx", "a.json", "a report can only be compared with a report"),
        ("a.txt", "a.onnx", "is no model"),
        (".", "a.json", "holds no report.json"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, before: str, after: str, sentence: str) -> None:
    save(tmp_path / "a.onnx", 1.0)
    write(tmp_path / "a.json")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path / before, tmp_path / after)


@pytest.mark.parametrize(
    "gate", ["speed.min=1", "accuracy.cosine.min", "accuracy.cosine.min=much", "accuracy.cosine.min=2"]
)
def test_a_wrong_gate_is_a_usage_error(tmp_path: Path, gate: str) -> None:
    a = write(tmp_path / "a.json")
    with pytest.raises(UsageError, match="--gate"):
        run(a, a, gates=[gate])


def test_an_unknown_axis_is_named(tmp_path: Path) -> None:
    a = save(tmp_path / "a.onnx", 1.0)
    with pytest.raises(UsageError, match="no input has an axis 'tokens'; there are: batch"):
        run(a, a, sizes=["tokens=3"])


def test_the_headline_tells_what_became_better_and_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = save(tmp_path / "a.onnx", 1.0), save(tmp_path / "b.onnx", -1.0)
    run(a, b, as_markdown=True)
    assert capsys.readouterr().out.startswith("## Cosine 0.")
    run(a, b, as_markdown=True, gates=["accuracy.cosine.min=0.9"])
    assert capsys.readouterr().out.startswith("## FAIL: accuracy.cosine.min")
