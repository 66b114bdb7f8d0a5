"""The report: facts of one run, stage by stage; the verdict is derived from them, never stored apart."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from optimize.facts import (
    AccuracyResult,
    ArtifactFact,
    Environment,
    Fact,
    GateResult,
    LayerFact,
    ModelFacts,
    PassRecord,
    Roofline,
    StageRecord,
    TensorError,
    ThroughputResult,
)
from optimize.sweep_facts import Sweep

SCHEMA_VERSION = 1

Verdict = Literal["PASS", "FAIL", "ERROR", "PARTIAL"]


class Blame(Fact):
    """Where accuracy went when a gate failed.

    Attributes:
        stage: The stage or pass after which a missed gate no longer holds.
        reason: The figure before and after it.
        tensors: The inner values to which most noise was added, worst first.
        remedy: The pass's entry in the recipe as it would leave the worst layers out, ready to paste.
        check: What was measured with the remedy.
    """

    stage: str
    reason: str = ""
    tensors: tuple[TensorError, ...] = ()
    remedy: str = ""
    check: str = ""


class Report(Fact):
    """Everything one run found out.

    Attributes:
        name: The recipe's name.
        recipe: The resolved recipe, as data.
        recipe_sha256: Of the resolved recipe's text.
        started_at: ISO 8601, UTC.
        command: What was typed.
        source: Exporter, notes and export checks.
        data: Digests and counts of calibration and evaluation data.
        stages: The steps of the run, in order.
        accuracy: One entry per stage compared with the original, in order of the run.
        layers: The optimised graph's computing layers with their number formats.
        sweep: Its place among the runs of a sweep, once that has ended.
    """

    schema_version: Literal[1] = 1
    tool_version: str
    name: str
    recipe: dict[str, Any]
    recipe_sha256: str
    started_at: str
    command: str = ""
    target: dict[str, Any] = {}
    source: dict[str, Any] = {}
    data: dict[str, Any] = {}
    environment: Environment
    stages: tuple[StageRecord, ...] = ()
    exported: ModelFacts | None = None
    optimized: ModelFacts | None = None
    passes: tuple[PassRecord, ...] = ()
    accuracy: tuple[AccuracyResult, ...] = ()
    layers: tuple[LayerFact, ...] = ()
    throughput: ThroughputResult | None = None
    roofline: Roofline | None = None
    artifacts: tuple[ArtifactFact, ...] = ()
    engine: dict[str, Any] = {}
    gates: tuple[GateResult, ...] = ()
    blame: Blame | None = None
    stopped_after: str = ""
    sweep: Sweep | None = None
    notes: tuple[str, ...] = ()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _derive_anew(cls, data: Any) -> Any:
        """A written report carries its verdict for other readers; ours is derived again, never believed."""
        if isinstance(data, dict) and "verdict" in data:
            return {key: value for key, value in data.items() if key != "verdict"}
        return data

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """ERROR when a stage failed, FAIL when a gate or an output did, PARTIAL when stopped early, else PASS."""
        if any(stage.outcome == "failed" for stage in self.stages):
            return "ERROR"
        final = self.accuracy[-1] if self.accuracy else None
        if (final and final.failures) or not all(gate.passed for gate in self.gates):
            return "FAIL"
        return "PARTIAL" if self.stopped_after else "PASS"
