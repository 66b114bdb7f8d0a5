"""Where accuracy went: the pass, by bisection; its worst inner values; the recipe lines that mend it, tried."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimize.engines.base import Progress
from optimize.facts import AccuracyResult, TensorError
from optimize.pipeline import batches, bisecting, comparing, mending, opening
from optimize.pipeline.bisecting import Bench
from optimize.pipeline.stages import transform
from optimize.report.model import Blame

BATCHES = 2
TENSORS_KEPT = 20


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Find what missed the gates `payload["gates"]` ({name: limit}).

    `payload["known"]` holds accuracies that were measured already: "export", "model", and each pass's by its
    place in the recipe. `payload["model"]` is the exported graph, `payload["optimized"]` what passes made of it.

    Returns:
        The blame, and under "accuracy" every further stage that the bisection measured, in order.
    """
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=directory) as folder:
        bench = Bench(payload, payload["gates"], Path(folder), progress)
        known = {stage: AccuracyResult.model_validate(item) for stage, item in payload["known"].items()}
        for stage in ("export", "model"):
            if stage not in known:
                model = ir.load(payload["model" if stage == "export" else "optimized"])
                known[stage] = bench.measure(model, stage)
        if bench.missed(known["export"]):
            reason = f"The exported model already misses it: {bench.figure(known['export'])}."
            return _found(Blame(stage="export", reason=reason))
        if not bench.missed(known["model"]):
            reason = f"The optimised graph holds it ({bench.figure(known['model'])}), the engine does not."
            return _found(Blame(stage="engine", reason=reason))
        return _in_passes(payload, known, bench, Path(folder), progress)


def _in_passes(
    payload: Mapping[str, Any],
    known: Mapping[str, AccuracyResult],
    bench: Bench,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    specs = opening.recipe_from(payload).passes
    model = ir.load(payload["model"])
    context = transform.context_of(payload, model, scratch, progress)
    found = bisecting.prefixes(model, specs, context, progress)
    measured = {int(place): result for place, result in known.items() if place.isdigit()}
    measured[-1] = known["export"]
    place, results = bisecting.first_missing(found, measured, bench)
    if place == 0:  # no pass did anything, yet the saved graph differs
        return _found(Blame(stage="model", reason=f"After the passes: {bench.figure(known['model'])}."))
    culprit, before = found[place], found[place - 1]
    left, right = bench.figure(results[before.place]), bench.figure(results.get(culprit.place, known["model"]))
    tensors = _tensors(payload, scratch, progress)
    remedy = mending.mend(before, specs[culprit.place :], tensors, bench, context)
    blame = Blame(
        stage=culprit.name,
        reason=f"Before it: {left}. After it: {right}.",
        tensors=tensors[:TENSORS_KEPT],
        remedy=remedy.lines,
        check=remedy.check,
    )
    further = [results[at] for at in sorted(results) if at >= 0 and at not in measured]
    return _found(blame, further)


def _tensors(payload: Mapping[str, Any], scratch: Path, progress: Progress) -> tuple[TensorError, ...]:
    """The worst inner values of the optimised graph, matched by source module, on a few evaluation batches."""
    from optimize.engines.graph_runner import GraphRunner
    from optimize.evaluate import attribution

    return attribution.compare_tensors(
        ir.load(payload["model"]),
        comparing.simulated(ir.load(payload["optimized"])),
        list(itertools.islice(batches.read(Path(payload["feeds"]) / "evaluation"), BATCHES)),
        GraphRunner(threads=None, scratch=scratch),
        progress=progress,
    )


def _found(blame: Blame, further: Sequence[AccuracyResult] = ()) -> dict[str, Any]:
    return {
        "blame": blame.model_dump(mode="json"),
        "accuracy": [item.model_dump(mode="json") for item in further],
    }
