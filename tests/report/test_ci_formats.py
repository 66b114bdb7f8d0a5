"""What CI systems read: GitHub's commands, GitLab's Code Quality, Prometheus' text format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from optimize.report import github, gitlab, prometheus
from optimize.report.model import Report
from optimize.report.recipe_lines import gate_line, recipe_file
from tests.support import reports

RECIPE = """\
name: x
gates:
  accuracy:
    cosine.min: 0.99
  latency.p99.max: 50ms
  size: {max: 40MB}
"""
COMMAND = re.compile(r"::(error|notice) ([^:]*)::(.*)")
ALL = [reports.passing(), reports.failing(), reports.broken(), reports.hostile('a\n::error::x,y:"\\\x1b%')]


@pytest.mark.parametrize(
    ("gate", "line"),
    [("accuracy.cosine.min", 4), ("latency.p99.max", 5), ("size.max", 6), ("speedup.min", 1)],
)
def test_a_gate_is_found_in_the_recipe_however_its_keys_are_nested(tmp_path: Path, gate: str, line: int) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RECIPE)
    assert gate_line(file, gate) == line


@pytest.mark.parametrize(
    "text",
    ["gates: [", "- 1", "gates: 3", "\x00", "gates: " + "[" * 9999, 'a: "\\UFFFFFFFF"', "gates: &a {speedup: *a}"],
)
def test_a_recipe_that_cannot_be_read_marks_its_first_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert gate_line(tmp_path / "x.yaml", "speedup.min") == 1
    assert gate_line(tmp_path / "none.yaml", "speedup.min") == 1


@pytest.mark.parametrize("first", ["a: 2001-99-99", "a: !!float x", f"a: {'9' * 5000}", "a: 1\na: 2"])
def test_values_that_are_none_do_not_hide_a_gates_line(tmp_path: Path, first: str) -> None:
    (tmp_path / "x.yaml").write_text(f"{first}\ngates:\n  speedup.min: 1\n")
    assert gate_line(tmp_path / "x.yaml", "speedup.min") == first.count("\n") + 3


def test_the_recipes_file_is_the_one_on_the_command_line() -> None:
    assert recipe_file(reports.passing()) == "recipes/minilm-int8-cpu.yaml"
    assert recipe_file(reports.passing(command="optimize run --set a=b.yaml 'x y.yml'")) == "x y.yml"
    assert recipe_file(reports.passing(command="optimize run 'unclosed")) == "report.json"


def test_github_gets_an_error_a_missed_gate_on_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RECIPE)
    lines = github.commands(reports.failing(), str(file))
    assert lines[0] == (
        f"::error file={file},line=4,title=minilm-int8-cpu%3A gate accuracy.cosine.min missed"
        "::0.843, at least 0.99; most was lost in quantize.int8"
    )
    assert len(lines) == 2
    assert ",line=5," in lines[1]


def test_github_gets_a_notice_with_the_headline_when_all_is_well() -> None:
    assert github.commands(reports.passing()) == (
        "::notice title=minilm-int8-cpu%3A PASS::3.1 × faster, 3.9 × smaller, cosine 0.99707",
    )


@pytest.mark.parametrize("report", ALL)
def test_no_name_can_start_a_command_of_its_own(report: Report) -> None:
    for line in github.commands(report):
        assert "\n" not in line
        match = COMMAND.fullmatch(line)
        assert match is not None, line
        assert match.group(2).count(",") <= 2


def test_the_step_summary_is_added_after_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    github.append_summary(reports.failing(), file)
    assert file.read_text().startswith("before\n## ❌ FAIL")


def test_gitlab_gets_what_its_format_asks_for() -> None:
    found = json.loads(gitlab.render(reports.failing()))
    assert [entry["check_name"] for entry in found] == ["optimize.gate", "optimize.gate"]
    for entry in found:
        assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert entry["location"]["lines"]["begin"] >= 1
        assert not entry["location"]["path"].startswith("./")
    assert json.loads(gitlab.render(reports.passing())) == []
    assert json.loads(gitlab.render(reports.broken()))[0]["severity"] == "blocker"


def test_a_fingerprint_stays_when_only_the_figure_moves_and_differs_between_gates() -> None:
    first = gitlab.entries(reports.failing())
    gates = tuple(
        gate.model_copy(update={"value": 0.8}) if gate.value is not None and not gate.passed else gate
        for gate in reports.failing().gates
    )
    second = gitlab.entries(reports.failing(gates=gates))
    assert first[0]["description"] != second[0]["description"]
    assert [entry["fingerprint"] for entry in first] == [entry["fingerprint"] for entry in second]
    assert len({entry["fingerprint"] for entry in first}) == 2


@pytest.mark.parametrize("report", [*ALL, reports.passing(accuracy=(reports.accuracy("export", 0.0),) * 2)])
def test_prometheus_own_parser_reads_every_report_without_a_sample_twice(report: Report) -> None:
    families = list(text_string_to_metric_families(prometheus.render(report)))
    assert {family.type for family in families} == {"gauge"}
    assert all(family.documentation for family in families)
    samples = [(sample.name, tuple(sorted(sample.labels.items()))) for f in families for sample in f.samples]
    assert len(samples) == len(set(samples)) > 5


def test_prometheus_gets_base_units_and_the_exporters_device_label() -> None:
    report = reports.passing()
    here = report.environment.model_copy(update={"devices": ("NVIDIA H100",)})
    values = {}
    for family in text_string_to_metric_families(prometheus.render(reports.passing(environment=here))):
        for sample in family.samples:
            labels = (sample.labels.get(name) for name in ("contender", "quantile", "modelName"))
            values[(sample.name, *labels)] = sample.value
    assert report.throughput is not None
    median = report.throughput.contenders[2].p50_ms
    assert values["optimize_latency_seconds", "optimized", "0.5", "NVIDIA H100"] == pytest.approx(median / 1000)
    assert ("optimize_latency_seconds", "optimized", "0.99", "NVIDIA H100") not in values
    assert values["optimize_run_passed", None, None, "NVIDIA H100"] == 1
