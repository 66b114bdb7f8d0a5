from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from optimize.report import junit
from optimize.report.model import Report
from tests.support import reports


def cases(report: Report) -> dict[str, xml.Element]:
    return {case.get("name", ""): case for case in xml.fromstring(junit.render(report)).iter("testcase")}


def test_there_is_a_case_per_stage_output_and_gate() -> None:
    report = reports.passing()
    expected = [stage.name for stage in report.stages] + ["embedding"] + [gate.gate for gate in report.gates]
    assert list(cases(report)) == expected


def test_missed_gates_are_failures_with_figure_limit_and_blame() -> None:
    found = cases(reports.failing())
    missed = found["accuracy.cosine.min"].find("failure")
    assert missed is not None
    assert missed.get("message") == "0.843, at least 0.99"
    assert "quantize.int8" in (missed.text or "")
    unmeasured = found["latency.p99.max"].find("failure")
    assert unmeasured is not None
    assert "not measured, at most 50 ms (60 samples are too few" in unmeasured.get("message", "")
    assert found["speedup.min"].find("failure") is None


def test_a_failed_stage_is_an_error_and_later_ones_are_skipped() -> None:
    found = cases(reports.broken())
    problem = found["build"].find("error")
    assert problem is not None
    assert problem.get("message") == "TensorRT: no kernel for node 'conv_3'."
    assert found["accuracy"].find("skipped") is not None


@pytest.mark.parametrize("report", [reports.passing(), reports.failing(), reports.broken()])
def test_the_counts_are_those_of_the_cases(report: Report) -> None:
    root = xml.fromstring(junit.render(report))
    for figure, path in (
        ("tests", "testcase"),
        ("failures", "testcase/failure"),
        ("errors", "testcase/error"),
        ("skipped", "testcase/skipped"),
    ):
        assert root.get(figure) == str(len(root.findall(f"testsuite/{path}")))
        for suite in root:
            assert suite.get(figure) == str(len(suite.findall(path)))


def test_control_characters_in_names_leave_valid_xml() -> None:
    root = xml.fromstring(junit.render(reports.hostile("\x00\x1b]]>&\ud800\ufffe")))
    assert "\\x00\\x1b]]>&" in root.get("name", "")
