from __future__ import annotations

import io
import json
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optimize.cli.report import app
from optimize.errors import UsageError
from optimize.facts import Flip
from optimize.report.writing import write
from tests.support import reports

runner = CliRunner()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    write(reports.failing(), tmp_path / "run")
    return tmp_path / "run"


def run(*arguments: str) -> str:
    result = runner.invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_folder_stands_for_the_report_in_it(finished: Path) -> None:
    assert run("show", str(finished)) == run("show", str(finished / "report.json"))
    assert run("show", str(finished)).startswith("FAIL  3.1 × faster")


@pytest.mark.parametrize(
    ("report", "code"), [(reports.passing(), 0), (reports.failing(), 1), (reports.broken(), 4)]
)
def test_show_can_end_as_the_run_did(tmp_path: Path, report: object, code: int) -> None:
    write(report, tmp_path)  # type: ignore[arg-type]
    assert app(["show", str(tmp_path), "--exit-code"], standalone_mode=False) == code
    assert app(["show", str(tmp_path)], standalone_mode=False) == 0


def test_every_view_is_printed_or_written_the_same(finished: Path, tmp_path: Path) -> None:
    for command, name in (("html", "report.html"), ("markdown", "report.md"), ("junit", "junit.xml")):
        text = run(command, str(finished))
        assert text == (finished / name).read_text(encoding="utf-8")
        run(command, str(finished), "-o", str(tmp_path / "deep" / name))
        assert (tmp_path / "deep" / name).read_text(encoding="utf-8") == text


def test_machines_get_machine_formats(finished: Path) -> None:
    assert len(json.loads(run("gitlab", str(finished), "--recipe-file", "r.yaml"))) == 2
    assert "optimize_run_passed{" in run("prometheus", str(finished))
    assert xml.parse(io.StringIO(run("junit", str(finished)))).getroot().tag == "testsuites"
    assert json.loads(run("schema"))["title"] == "optimize report"


def test_changed_decisions_are_listed_and_a_run_without_decisions_is_told(finished: Path, tmp_path: Path) -> None:
    changed = (Flip(sample=3, reference=7, candidate=9, label=7),)
    final = reports.accuracy("engine", 0.1, decisions=500, flips=changed, flips_total=1)
    write(reports.passing(accuracy=(final,)), tmp_path / "decided")
    assert run("flips", str(tmp_path / "decided")).splitlines()[1:] == ["3,7,7,9,right to wrong"]
    with pytest.raises(UsageError, match="no decisions were compared"):
        run("flips", str(finished))


def test_github_gets_annotations_and_the_step_summary(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run("github", str(finished)).startswith("::error file=recipes/minilm-int8-cpu.yaml,line=")
    assert (tmp_path / "summary.md").read_text().startswith("## ❌ FAIL")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    run("github", str(finished))


def test_a_folder_that_cannot_be_written_is_named(finished: Path) -> None:
    with pytest.raises(UsageError, match="File exists"):
        app(["html", str(finished), "-o", str(finished / "report.json" / "x.html")], standalone_mode=False)
