"""What a CI system should complain of, one entry each: failed stages, unsound outputs, missed gates."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal

from optimize.report import headline, wording
from optimize.report.model import Report
from optimize.report.recipe_lines import gate_line, recipe_file


@dataclasses.dataclass(frozen=True)
class Problem:
    """One complaint.

    Attributes:
        kind: "stage", "output" or "gate".
        name: The stage's, output's or gate's name.
        message: The sentence.
        file: The recipe's file, relative as the user named it.
        line: 1-based line in it.
    """

    kind: Literal["stage", "output", "gate"]
    name: str
    message: str
    file: str
    line: int

    @property
    def title(self) -> str:
        """A few words, without figures."""
        words = {"stage": "stage {} failed", "output": "output {} is unsound", "gate": "gate {} missed"}
        return words[self.kind].format(self.name)


def problems(report: Report, file: str | None = None) -> tuple[Problem, ...]:
    """Every complaint, the gravest first. `file` overrides the recipe's file named on the command line."""
    file = wording.one_line(file or recipe_file(report))
    found = [
        Problem("stage", wording.one_line(stage.name), wording.one_line(stage.error), file, 1)
        for stage in report.stages
        if stage.outcome == "failed"
    ]
    final = headline.final_accuracy(report)
    found += [
        Problem("output", wording.one_line(output.output), wording.one_line(output.failure), file, 1)
        for output in (final.outputs if final else ())
        if output.failure
    ]
    for gate in report.gates:
        if not gate.passed:
            text = headline.gate_text(gate) + (f" ({gate.note})" if gate.note else "")
            if report.blame and gate.gate.startswith(("accuracy", "metric", "drop")):
                text += f"; most was lost in {report.blame.stage}"
            line = gate_line(Path(file), gate.gate)
            found.append(Problem("gate", wording.one_line(gate.gate), wording.one_line(text), file, line))
    return tuple(found)


def fingerprint(report: Report, problem: Problem) -> str:
    """The same for the same complaint of the next run, whatever its figures."""
    identity = "\0".join((report.name, problem.file, problem.kind, problem.name))
    return hashlib.sha256(identity.encode("utf-8", "backslashreplace")).hexdigest()
