"""GitHub Actions: annotations as workflow commands on stdout, the step summary as Markdown."""

from __future__ import annotations

from pathlib import Path

from optimize.report import headline, markdown, wording
from optimize.report.model import Report
from optimize.report.problems import problems


def commands(report: Report, file: str | None = None) -> tuple[str, ...]:
    """A workflow command per problem, and a notice with the headline when there is none.

    Source: GitHub Docs, "Workflow commands for GitHub Actions": `::error file=,line=,title=::message`.
    """
    lines = [
        f"::error file={_property(problem.file)},line={problem.line},"
        f"title={_property(f'{wording.one_line(report.name)}: {problem.title}')}::{_message(problem.message)}"
        for problem in problems(report, file)
    ]
    if not lines:
        title = _property(f"{wording.one_line(report.name)}: {report.verdict}")
        lines.append(f"::notice title={title}::{_message(headline.sentence(report))}")
    return tuple(lines)


def append_summary(report: Report, summary: Path) -> None:
    """Add the Markdown report to the step's summary ($GITHUB_STEP_SUMMARY), after what is there."""
    with summary.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(markdown.render(report) + "\n")


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
