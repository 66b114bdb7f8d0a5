"""Step 5 and 6: the passes, one after the other, and the optimised model written once."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimize import onnx_files
from optimize.engines.base import Progress
from optimize.errors import StageFailed
from optimize.facts import AccuracyResult, PassRecord, PatternFact, SkipFact
from optimize.pipeline import comparing, digests, layer_facts, model_facts, opening
from optimize.pipeline.watching import StoredCalibration, StoredJudge
from passes import names, registry, saving
from passes.base import Pass, PassContext, PassFailed, PassResult
from passes.target import Target


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Apply the recipe's passes to `payload["model"]` and write `directory/model.onnx`.

    Raises:
        StageFailed: When a pass fails, leaves the model broken, or misses what the recipe expects of it.
    """
    recipe = opening.recipe_from(payload)
    model = ir.load(payload["model"])
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=directory) as scratch:
        context = context_of(payload, model, Path(scratch), progress)
        interface = _interface(model)
        for number, spec in enumerate(recipe.passes):
            progress(spec.name, number, len(recipe.passes))
            applied = registry.find(spec.name)(**spec.options)
            record = apply_pass(applied, spec.name, model, context)
            if _interface(model) != interface:
                raise StageFailed(
                    f"pass '{spec.name}' changed the model's inputs or outputs: {interface} became "
                    f"{_interface(model)}.",
                    hint="This is a defect of the pass; leave it out and report it.",
                )
            if payload["accuracy_per_pass"] and (record.changed or any(item.found for item in record.patterns)):
                accuracy = _accuracy(model, spec.name, payload, Path(scratch), progress)
                record = record.model_copy(update={"accuracy": accuracy})
            records.append(record.model_dump(mode="json"))
        progress("saving the optimised model", len(recipe.passes), len(recipe.passes))
        path = directory / "model.onnx"
        saving.save(model, path, progress=progress)
    sha256, size = onnx_files.digest(path, digests.of_file)
    saved = ir.load(path)
    facts = model_facts.of(saved, size)
    return {
        "model": "model.onnx",
        "sha256": sha256,
        "passes": records,
        "facts": facts.model_dump(mode="json"),
        "layers": [layer.model_dump(mode="json") for layer in layer_facts.of(saved)],
    }


def context_of(payload: Mapping[str, Any], model: ir.Model, scratch: Path, progress: Progress) -> PassContext:
    """What the recipe's passes are given of the world."""
    from optimize.engines.graph_runner import GraphRunner

    recipe = opening.recipe_from(payload)
    runner = GraphRunner(threads=None, scratch=scratch)
    calibration = judge = None
    if payload["calibration"]:
        calibration = StoredCalibration(
            Path(payload["feeds"]) / "calibration", payload["calibration"]["samples"], runner
        )
        judge = StoredJudge(
            calibration=calibration,
            reference=ir.load(payload["model"]),
            engine=opening.engine_of(recipe),
            ranges=opening.ranges_of(payload["ranges"]),
            scratch=scratch,
            kind=recipe.evaluate.kind,
            simulate=comparing.simulated,
        )
    return PassContext(
        target=Target.model_validate(payload["target"]),
        run=runner,
        calibration=calibration,
        judge=judge,
        seed=recipe.seed,
        progress=progress,
        base_directory=str(recipe.base),
        scratch=str(scratch),
        lessons=payload["lessons"],
    )


def apply_pass(applied: Pass, name: str, model: ir.Model, context: PassContext) -> PassRecord:
    """Apply one pass in place and record what it did.

    Raises:
        StageFailed: When it fails, or misses what the recipe expects of it.
    """
    before = model_facts.of(model, 0).nodes
    unmatched = tuple(names.unmatched(model, applied.patterns_to_skip()))
    started = time.monotonic()
    try:
        result = applied.apply(model, context)
    except PassFailed as error:
        raise StageFailed(f"{name}: {error}") from error
    seconds = time.monotonic() - started
    _meet_expectations(applied, name, result)
    return PassRecord(
        name=name,
        options=applied.model_dump(mode="json", exclude_defaults=True),
        seconds=seconds,
        nodes_before=before,
        nodes_after=model_facts.of(model, 0).nodes,
        patterns=tuple(
            PatternFact(
                name=pattern.name,
                found=pattern.found,
                expected=applied.expect.get(pattern.name),
                near_misses=tuple(SkipFact(**dataclasses.asdict(skip)) for skip in pattern.near_misses),
            )
            for pattern in result.patterns
        ),
        skips=tuple(SkipFact(**dataclasses.asdict(skip)) for skip in result.skips),
        changed=result.changed,
        figures=dict(result.figures),
        notes=(*result.notes, *unmatched),
    )


def _meet_expectations(applied: Pass, name: str, result: PassResult) -> None:
    found = {pattern.name: pattern for pattern in result.patterns}
    for pattern_name, expected in applied.expect.items():
        pattern = found.get(pattern_name)
        if pattern is None:
            known = ", ".join(found) or "none"
            raise StageFailed(
                f"{name}: expect names '{pattern_name}', which this pass does not count; it counts {known}."
            )
        if pattern.found != expected:
            near = "; ".join(f"{skip.node}: {skip.reason}" for skip in pattern.near_misses[:3])
            raise StageFailed(
                f"{name}: expected {expected} × {pattern_name}, found {pattern.found}.",
                hint=f"Near misses: {near}." if near else "Nothing came near the pattern.",
            )


def _interface(model: ir.Model) -> list[list[tuple[str, str]]]:
    return [
        [(str(value.name), str(value.dtype)) for value in values]
        for values in (model.graph.inputs, model.graph.outputs)
    ]


def _accuracy(
    model: ir.Model, name: str, payload: Mapping[str, Any], scratch: Path, progress: Progress
) -> AccuracyResult:
    path = scratch / "candidate.onnx"
    saving.save(copy.copy(model), path)
    return comparing.compare_onnx(path, name, payload, progress)
