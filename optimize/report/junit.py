"""JUnit XML: one test case per stage and per gate, so that any CI system shows what failed."""

from __future__ import annotations

import xml.etree.ElementTree as xml

from optimize.console import printable
from optimize.report import headline
from optimize.report.model import Report


def render(report: Report) -> str:
    """The document. A missed gate is a failure, a failed stage an error, a stage not run is skipped."""
    root = xml.Element("testsuites", name=_clean(report.name))
    for suite in (_stages(report), _accuracy(report), _gates(report)):
        if len(suite):
            root.append(suite)
    for figure in ("tests", "failures", "errors", "skipped"):
        root.set(figure, str(sum(int(suite.get(figure, "0")) for suite in root)))
    root.set("time", f"{sum(stage.seconds for stage in report.stages):.3f}")
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """XML 1.0 has no place for control characters, not even escaped ones."""
    return printable(text)


def _suite(report: Report, name: str) -> xml.Element:
    started = report.started_at[:19]  # the schema of JUnit files knows no time zone
    return xml.Element("testsuite", name=f"{_clean(report.name)}.{name}", timestamp=_clean(started))


def _finish(suite: xml.Element) -> xml.Element:
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in suite):.3f}")
    return suite


def _case(suite: xml.Element, name: str, seconds: float = 0.0) -> xml.Element:
    return xml.SubElement(
        suite, "testcase", classname=suite.get("name", ""), name=_clean(name), time=f"{seconds:.3f}"
    )


def _stages(report: Report) -> xml.Element:
    suite = _suite(report, "stages")
    for stage in report.stages:
        case = _case(suite, stage.name, stage.seconds)
        if stage.outcome == "failed":
            problem = xml.SubElement(case, "error", message=_clean(stage.error), type="StageFailed")
            problem.text = _clean(stage.error)
        elif stage.outcome == "not run":
            xml.SubElement(case, "skipped", message="an earlier stage failed")
    return _finish(suite)


def _accuracy(report: Report) -> xml.Element:
    """Whether each output of the last compared stage can be accepted at all."""
    suite = _suite(report, "outputs")
    final = headline.final_accuracy(report)
    for output in final.outputs if final else ():
        case = _case(suite, output.output)
        if output.failure:
            problem = xml.SubElement(case, "failure", message=_clean(output.failure), type="UnsoundOutput")
            problem.text = _clean(output.failure)
    return _finish(suite)


def _gates(report: Report) -> xml.Element:
    suite = _suite(report, "gates")
    for gate in report.gates:
        case = _case(suite, gate.gate)
        if not gate.passed:
            text = headline.gate_text(gate) + (f" ({gate.note})" if gate.note else "")
            problem = xml.SubElement(case, "failure", message=_clean(text), type="GateFailed")
            problem.text = _clean(text)
            if report.blame and gate.gate.startswith(("accuracy", "metric", "drop")):
                problem.text += f"\nMost was lost in {_clean(report.blame.stage)}."
    return _finish(suite)
