"""A recipe to its verdict: preflight, the steps, the report, the exit code."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from optimize import errors
from optimize.pipeline import assembling, outputs, preflight
from optimize.pipeline.executing import Executor, Watcher
from optimize.pipeline.steps import Steps, Until
from optimize.pipeline.store import Store
from optimize.recipe.model import Recipe
from optimize.report.model import Report


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run a recipe; nothing here changes what comes out.

    Attributes:
        store: Folder of the store.
        output: Folder for the results; None: the recipe's own.
        command: What was typed, for the report.
        fresh: Steps to compute again even when stored.
        until: Stop after the passes, or after the build; what comes later is neither run nor judged.
        allow_pickle: Whether files that run code when loaded may be loaded.
    """

    store: Path
    output: Path | None = None
    command: str = ""
    fresh: frozenset[str] = frozenset()
    allow_pickle: bool = False
    until: Until | None = None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its report, where the results lie, and the exit code."""

    report: Report
    output: Path
    exit_code: int
    error: errors.OptimizeError | None = None


def run(recipe: Recipe, options: RunOptions, watcher: Watcher) -> RunResult:
    """Run a recipe to its verdict.

    Raises:
        OptimizeError: Before the first step, when the recipe cannot run here. Later failures are in the result.
        KeyboardInterrupt: When interrupted; finished steps stay in the store.
    """
    plan = preflight.plan(
        recipe, options.store, allow_pickle=options.allow_pickle, output=options.output, until=options.until
    )
    if plan.problems:
        raise outputs.first_of(plan.problems)
    store = Store(options.store)
    store.sweep()
    output = options.output or Path(recipe.output.replace("{name}", recipe.name))
    outputs.prepare(output)
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    executor = Executor(store, watcher, output / "logs", options.fresh)
    steps = Steps(recipe, plan, executor, output, until=options.until, allow_pickle=options.allow_pickle)
    error: errors.OptimizeError | None = None
    try:
        steps.run()
    except errors.OptimizeError as failure:
        error = failure
        steps.mark_rest_not_run()
    finally:
        store.digests.keep()
    report = assembling.report(steps, started_at=started_at, command=options.command)
    outputs.write_report(report, recipe, output)
    if error is not None:
        return RunResult(report, output, error.exit_code, error)
    code = errors.GATE_FAILED if report.verdict == "FAIL" else errors.PASSED
    return RunResult(report, output, code)
