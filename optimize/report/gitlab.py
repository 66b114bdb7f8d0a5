"""GitLab's Code Quality report: a JSON list that a merge request shows beside the recipe's lines."""

from __future__ import annotations

import json
from typing import Any

from optimize.report.model import Report
from optimize.report.problems import fingerprint, problems

SEVERITY = {"stage": "blocker", "output": "blocker", "gate": "critical"}


def entries(report: Report, file: str | None = None) -> list[dict[str, Any]]:
    """One entry per problem.

    Source: GitLab Docs, "Code Quality", section "Code Quality report format".
    """
    return [
        {
            "description": f"{problem.title}: {problem.message}",
            "check_name": f"optimize.{problem.kind}",
            "fingerprint": fingerprint(report, problem),
            "severity": SEVERITY[problem.kind],
            "location": {"path": problem.file.removeprefix("./"), "lines": {"begin": problem.line}},
        }
        for problem in problems(report, file)
    ]


def render(report: Report, file: str | None = None) -> str:
    """The list as JSON text."""
    return json.dumps(entries(report, file), indent=2, ensure_ascii=False) + "\n"
