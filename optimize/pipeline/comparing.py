"""Comparing a model or an engine with the stored reference, batch by batch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimize import user_code
from optimize.engines.base import Progress, Session
from optimize.facts import AccuracyResult
from optimize.pipeline import batches, opening
from passes import saving


def compare(session: Session, stage: str, payload: Mapping[str, Any], progress: Progress) -> AccuracyResult:
    """Run `session` on the evaluation feeds and compare with the reference outputs.

    `payload` names the folders `feeds` and `reference`, and holds the recipe.
    """
    from optimize.evaluate.accuracy import Comparison

    recipe = opening.recipe_from(payload)
    feeds = Path(payload["feeds"]) / "evaluation"
    named = recipe.evaluate.metric
    metric = user_code.load(named, recipe.base, what="evaluate.metric") if named else None
    comparison = Comparison(kind=recipe.evaluate.kind, metric=metric)
    total = batches.count(feeds)
    rows = zip(
        batches.read(feeds),
        batches.labels(feeds),
        batches.read(Path(payload["reference"]) / "reference"),
        strict=True,
    )
    for done, (inputs, labels, reference) in enumerate(rows):
        progress(f"accuracy of {stage}", done, total)
        comparison.add(reference, session.run(inputs), labels)
    return comparison.result(stage)


def compare_onnx(path: Path, stage: str, payload: Mapping[str, Any], progress: Progress) -> AccuracyResult:
    """Compare an ONNX file, run without graph optimisation; formats the CPU lacks are simulated exactly."""
    from optimize.engines.onnxruntime_session import open_onnx

    with tempfile.TemporaryDirectory() as scratch:
        model = ir.load(path)
        lowered = simulated(model)
        if lowered is not model:
            path = Path(scratch) / "simulated.onnx"
            saving.save(lowered, path)
        with open_onnx(path, optimized=False) as session:
            result = compare(session, stage, payload, progress)
    if lowered is not model:
        note = "Formats that this machine cannot run were simulated with standard operators."
        result = result.model_copy(update={"notes": (*result.notes, note)})
    return result


def simulated(model: ir.Model) -> ir.Model:
    """A model that ONNX Runtime's CPU provider can run: the same object when nothing needs simulating."""
    from passes.base import PassContext
    from passes.quantize.simulate import Simulate
    from passes.target import Target

    lowered = model.clone()
    bare = Target(name="cpu", title="CPU", device="cpu", dialect="onnxruntime")
    return lowered if Simulate().apply(lowered, PassContext(target=bare)).rewrites else model
