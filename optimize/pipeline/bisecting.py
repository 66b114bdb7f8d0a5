"""From a missed accuracy gate to the pass it was lost in: passes applied again, prefixes judged by bisection."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimize.engines.base import Progress
from optimize.evaluate import gates as judging
from optimize.facts import AccuracyResult
from optimize.pipeline import comparing
from optimize.pipeline.stages import transform
from optimize.recipe.model import PassSpec
from passes import registry, saving
from passes.base import PassContext


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The model after some of the recipe's passes.

    Attributes:
        place: Index of the last of them; -1 for the model before all passes.
        name: Its name.
        model: A graph of its own that shares its weights with the others.
    """

    place: int
    name: str
    model: ir.Model


@dataclasses.dataclass
class Bench:
    """Judges models by the missed gates alone, on the whole evaluation data.

    Attributes:
        payload: As `comparing.compare` wants it.
        gates: Limit by name of each missed accuracy gate.
        scratch: For the models' files.
        progress: Told what is compared.
    """

    payload: Mapping[str, Any]
    gates: Mapping[str, float]
    scratch: Path
    progress: Progress

    def measure(self, model: ir.Model, stage: str) -> AccuracyResult:
        """A model's accuracy, its formats simulated where this machine lacks them."""
        path = self.scratch / "candidate.onnx"
        saving.save(copy.copy(model), path)
        return comparing.compare_onnx(path, stage, self.payload, self.progress)

    def missed(self, result: AccuracyResult) -> tuple[str, ...]:
        """The gates that a result misses; an unsound output misses all."""
        if result.failures:
            return tuple(self.gates) or ("a sound output",)
        found = judging.judge(self.gates, judging.figures_of((result,), None, None, None))
        return tuple(gate.gate for gate in found if not gate.passed)

    def figure(self, result: AccuracyResult) -> str:
        """The gates' figures, for a sentence."""
        if not self.gates:
            return "; ".join(result.failures)[:200] or "the outputs are sound"
        found = judging.judge(self.gates, judging.figures_of((result,), None, None, None))
        figures = (f"{'not measured' if gate.value is None else format(gate.value, '.5g')}" for gate in found)
        return ", ".join(
            f"{gate.gate.rpartition('.')[0]} {figure}" for gate, figure in zip(found, figures, strict=True)
        )


def apply(specs: Sequence[PassSpec], model: ir.Model, context: PassContext) -> bool:
    """Apply passes in place; whether any of them did something."""
    changed = False
    for spec in specs:
        record = transform.apply_pass(registry.find(spec.name)(**spec.options), spec.name, model, context)
        changed |= bool(record.changed) or any(pattern.found for pattern in record.patterns)
    return changed


def prefixes(model: ir.Model, specs: Sequence[PassSpec], context: PassContext, progress: Progress) -> list[Prefix]:
    """The model as it came and after every pass that did something."""
    found = [Prefix(-1, "export", model.clone())]
    for place, spec in enumerate(specs):
        progress(f"again: {spec.name}", place, len(specs))
        if apply([spec], model, context):
            found.append(Prefix(place, spec.name, model.clone()))
    return found


def first_missing(
    found: Sequence[Prefix], known: Mapping[int, AccuracyResult], bench: Bench
) -> tuple[int, dict[int, AccuracyResult]]:
    """The first prefix, by its place in `found`, that misses a gate; it is assumed that the last one does.

    Args:
        found: As `prefixes` gives them.
        known: What was measured already, by `Prefix.place`.
        bench: Judges the rest.

    Returns:
        The place, and all that is known now, by `Prefix.place`.
    """
    results = dict(known)

    def misses(place: int) -> bool:
        prefix = found[place]
        if prefix.place not in results:
            results[prefix.place] = bench.measure(prefix.model, prefix.name)
        return bool(bench.missed(results[prefix.place]))

    place = bisect(len(found), misses)
    if place:
        misses(place - 1)  # so that both sides of the step are known
    return place, results


def bisect(count: int, misses: Callable[[int], bool]) -> int:
    """The first of `count` places that misses, the last one being known to; about log2(count) are asked."""
    low, high = -1, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if misses(middle):
            high = middle
        else:
            low = middle
    return high
