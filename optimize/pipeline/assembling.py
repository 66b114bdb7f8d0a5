"""A run's results put together into its report."""

from __future__ import annotations

from typing import Any

from optimize.facts import LayerFact, ModelFacts, PassRecord, StageRecord
from optimize.pipeline import environment, outputs
from optimize.pipeline.preflight import Plan
from optimize.pipeline.steps import Steps
from optimize.report.model import Report
from optimize.version import __version__


def report(steps: Steps, *, started_at: str, command: str) -> Report:
    """The report of what was done, whole or not."""
    resolved = outputs.resolved_recipe(steps.recipe)
    source: dict[str, Any] = {}
    if steps.capture is not None:
        source = {
            key: steps.capture.facts[key] for key in ("exporter", "notes", "checks", "inputs", "outputs", "ranges")
        }
    return Report(
        tool_version=__version__,
        name=steps.recipe.name,
        recipe=steps.recipe.model_dump(mode="json"),
        recipe_sha256=outputs.sha256_of_text(resolved),
        started_at=started_at,
        command=command,
        target=steps.plan.target.model_dump(mode="json"),
        source=source,
        data=dict(steps.feeds.facts) if steps.feeds else {},
        environment=environment.describe(),
        stages=tuple(_with_estimate(record, steps.plan) for record in steps.executor.records),
        exported=ModelFacts.model_validate(steps.capture.facts["facts"]) if steps.capture else None,
        optimized=ModelFacts.model_validate(steps.passes.facts["facts"]) if steps.passes else None,
        passes=tuple(
            PassRecord.model_validate(item) for item in (steps.passes.facts["passes"] if steps.passes else ())
        ),
        layers=tuple(
            LayerFact.model_validate(item) for item in (steps.passes.facts["layers"] if steps.passes else ())
        ),
        accuracy=steps.accuracy,
        throughput=steps.throughput,
        roofline=steps.roofline,
        artifacts=outputs.artifacts(steps.passes, steps.engine, steps.output),
        engine=dict(steps.engine.facts["details"]) if steps.engine else {},
        gates=() if steps.until else outputs.judged(steps),
        stopped_after=steps.until or "",
        blame=steps.blame,
        notes=tuple(steps.notes),
    )


def _with_estimate(record: StageRecord, plan: Plan) -> StageRecord:
    return record.model_copy(update={"expected": plan.estimate.of(record.name)}) if plan.estimate else record
