"""What changed in one figure, count or text between two sides, and which way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimize.differences import CountChange, Difference, Direction, FigureChange, TextChange
from optimize.evaluate.intervals import Ratio
from optimize.facts import LayerFact, ModelFacts
from optimize.figures import split_gate

NOISE = 0.05
"""Figures of time and memory without an interval count as the same within this share."""

_NOISY = ("latency.p90", "latency.p99", "memory", "energy")
_LOWER_IS_BETTER = (
    "accuracy.relative_l2",
    "accuracy.max_abs",
    "accuracy.mean_abs",
    "latency",
    "size",
    "memory",
    "energy",
    "drop",
)
_ORDER = (
    "accuracy", "metric", "drop", "latency", "throughput", "speedup", "speedup_over_export", "size", "memory",
    "energy",
)  # fmt: skip


def figure(name: str, before: float | None, after: float | None, ratio: Ratio | None = None) -> FigureChange:
    """One figure of both sides, and whether the second is better.

    Args:
        name: As `optimize.figures` has it.
        before, after: In the figure's unit; None where a side lacks it.
        ratio: after / before with its interval, for what was timed.
    """
    unit = split_gate(f"{name}.max")[2].unit
    change = FigureChange(name=name, unit=unit, before=before, after=after)
    if before is None or after is None:
        return change
    lower = any(name == item or name.startswith(f"{item}.") for item in _LOWER_IS_BETTER)
    direction: Direction
    if ratio is not None and not ratio.is_significant:
        direction = "no significant difference"
    elif _equal(before, after, NOISE if name in _NOISY else 1e-9):
        direction = "same"
    elif math.isnan(before) or math.isnan(after):
        direction = "worse" if math.isnan(after) else "better"
    else:
        direction = "better" if (after < before) == lower else "worse"
    update: dict[str, Any] = {"direction": direction}
    if ratio is not None:
        update |= {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high}
    return change.model_copy(update=update)


def regressions(difference: Difference) -> dict[str, float]:
    """The figures that gates may limit: `regression.*`, and the second side's own.

    A latency whose change is not significant counts as 0 % above.
    """
    figures = {item.name: item.after for item in difference.figures if item.after is not None}
    changes = {item.name: item for item in difference.figures}
    latency, size, cosine = (changes.get(name) for name in ("latency.p50", "size", "accuracy.cosine"))
    if latency is not None and latency.direction is not None and latency.before and latency.after is not None:
        is_real = latency.direction in ("better", "worse")
        figures["regression.latency"] = 100 * (latency.after / latency.before - 1) if is_real else 0.0
    if size is not None and size.before and size.after is not None:
        figures["regression.size"] = 100 * (size.after / size.before - 1)
    if cosine is not None and cosine.after is not None:
        # between two models the first one's outputs are the truth, whose cosine with itself is 1
        whole = 1.0 if difference.kind == "models" else cosine.before
        if whole is not None:
            figures["regression.cosine"] = whole - cosine.after
    return figures


def in_order(names: Iterable[str]) -> list[str]:
    """Figures as a reader wants them: accuracy, speed, size, memory."""

    def place(name: str) -> tuple[int, str]:
        head = name.partition(".")[0]
        return (_ORDER.index(head) if head in _ORDER else len(_ORDER)), name

    return sorted(names, key=place)


def counts(before: ModelFacts | None, after: ModelFacts | None, field: str) -> tuple[CountChange, ...]:
    """Entries of a counting field of both graphs that differ, largest change first."""
    if before is None or after is None:
        return ()
    left, right = dict(getattr(before, field)), dict(getattr(after, field))
    names = sorted({*left, *right}, key=lambda name: (-abs(right.get(name, 0) - left.get(name, 0)), name))
    return tuple(
        CountChange(what=name, before=left.get(name, 0), after=right.get(name, 0))
        for name in names
        if left.get(name, 0) != right.get(name, 0)
    )


def layers(before: Sequence[LayerFact], after: Sequence[LayerFact]) -> tuple[TextChange, ...]:
    """Layers whose number formats differ."""
    return texts(_formats_by_name(before), _formats_by_name(after))


def texts(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[TextChange, ...]:
    """Entries that differ, in order of the first side, then the second."""
    return tuple(
        TextChange(what=name, before=before.get(name, ""), after=after.get(name, ""))
        for name in dict.fromkeys((*before, *after))
        if before.get(name, "") != after.get(name, "")
    )


def _formats_by_name(layers: Sequence[LayerFact]) -> dict[str, str]:
    """A module may hold several computing nodes; its distinct formats are joined."""
    found: dict[str, dict[str, None]] = {}
    for layer in layers:
        found.setdefault(layer.name, {})[_formats(layer)] = None
    return {name: "; ".join(filter(None, formats)) for name, formats in found.items()}


def _formats(layer: LayerFact) -> str:
    parts = [(layer.weight, "weight"), (layer.activation, "activation")]
    return ", ".join(f"{form} {of}" for form, of in parts if form)


def _equal(before: float, after: float, share: float) -> bool:
    if before == after or (math.isnan(before) and math.isnan(after)):
        return True
    return math.isfinite(before) and math.isfinite(after) and abs(after - before) <= share * abs(before)
