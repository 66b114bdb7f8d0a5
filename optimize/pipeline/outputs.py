"""The output folder: model, engine, resolved recipe, report; each whole or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from optimize import errors
from optimize.facts import AccuracyResult, ArtifactFact, GateResult, ModelFacts, ThroughputResult
from optimize.pipeline import files
from optimize.pipeline.store import ENTRY, Entry
from optimize.recipe.model import Recipe
from optimize.report.model import Report


class Measured(Protocol):
    """A run as far as gates look at it."""

    recipe: Recipe
    capture: Entry | None
    passes: Entry | None
    accuracy: tuple[AccuracyResult, ...]
    throughput: ThroughputResult | None


def prepare(output: Path) -> None:
    """Make the folder, and take away reports of earlier runs: an old verdict must not outlive its run.

    Raises:
        UsageError: When it cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "report.md", "report.html", "junit.xml"):
            (output / name).unlink(missing_ok=True)
        for partial in output.glob(".*.partial"):
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UsageError(f"output folder '{output}' cannot be written: {error.strerror}.") from error


def place_model(entry: Entry, output: Path) -> None:
    """Put the optimised model into the output folder."""
    for path in sorted(entry.directory.iterdir()):
        if path.is_file() and path.name != ENTRY:
            files.place(path, output / path.name)


def place_engine(entry: Entry, output: Path) -> None:
    """Put the engine's files into `output/engine/`."""
    folder = entry.directory / "engine"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files.place(path, output / "engine" / path.relative_to(folder))


def artifacts(passes: Entry | None, engine: Entry | None, output: Path) -> tuple[ArtifactFact, ...]:
    """What lies in the output folder."""
    found = []
    if passes is not None:
        facts = passes.facts
        found.append(
            ArtifactFact(
                label="optimized model",
                file=facts["model"],
                kind="onnx",
                sha256=facts["sha256"],
                size_bytes=facts["facts"]["size_bytes"],
            )
        )
    if engine is not None:
        facts = engine.facts
        found.append(
            ArtifactFact(
                label="engine",
                file=facts["path"],
                kind=facts["kind"],
                sha256=facts["sha256"],
                size_bytes=facts["size_bytes"],
                made_by=facts["made_by"],
            )
        )
    return tuple(found)


def judged(run: Measured) -> tuple[GateResult, ...]:
    """Every gate of the recipe against what was measured; a figure that is missing fails its gate."""
    from optimize.evaluate import gates

    previous = gates.read_previous(run.recipe.base / run.recipe.previous) if run.recipe.previous else None
    figures = gates.figures_of(
        run.accuracy,
        run.throughput,
        ModelFacts.model_validate(run.capture.facts["facts"]) if run.capture else None,
        ModelFacts.model_validate(run.passes.facts["facts"]) if run.passes else None,
        previous,
    )
    speedups = run.throughput.speedups if run.throughput else ()
    return gates.judge(run.recipe.gates, figures, speedups)


def resolved_recipe(recipe: Recipe) -> str:
    """The resolved recipe's YAML text, the same wherever it is written to."""
    from optimize.recipe import resolving

    return resolving.resolve(recipe)


def write_report(report: Report, recipe: Recipe, output: Path) -> None:
    """Write the resolved recipe, where its paths start from, and every view of the report."""
    from optimize.recipe import resolving
    from optimize.report import writing

    files.write_atomically(output / "recipe.resolved.yaml", resolved_recipe(recipe).encode())
    files.write_atomically(output / resolving.BASE_FILE, f"{resolving.base_from(recipe, output)}\n".encode())
    writing.write(report, output)


def sha256_of_text(text: str) -> str:
    """sha256 of UTF-8 text."""
    return hashlib.sha256(text.encode()).hexdigest()


def first_of(problems: Sequence[errors.OptimizeError]) -> errors.OptimizeError:
    """One error for several problems: the first one's kind, every sentence."""
    first = problems[0]
    if len(problems) == 1:
        return first
    return type(first)("\n".join(str(problem) for problem in problems))
