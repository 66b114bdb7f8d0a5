"""Two reports compared: this release against the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimize.differences import Difference, FigureChange, TextChange
from optimize.evaluate import changes, earlier, gates, regression
from optimize.evaluate.intervals import Ratio
from optimize.facts import ThroughputResult


def compare_reports(
    before: Mapping[str, Any], after: Mapping[str, Any], labels: tuple[str, str] = ("before", "after")
) -> Difference:
    """Compare two reports as `earlier.load` gives them.

    Raises:
        UsageError: When one is no report of this version.
    """
    left, right = earlier.parts(before), earlier.parts(after)
    figures = [
        gates.figures_of(side.accuracy, side.throughput, side.exported, side.optimized) for side in (left, right)
    ]
    timed, same_data = regression.timed_alike(left.throughput, right.throughput), _same_data(left, right)
    ratio = regression.latency_ratio(left.throughput, right.throughput) if timed else None
    found: list[FigureChange] = []
    for name in changes.in_order({*figures[0], *figures[1]}):
        interval = ratio if name in ("latency.p50", "throughput") else None
        item = changes.figure(name, figures[0].get(name), figures[1].get(name), _turned(name, interval))
        if not _comparable(name, timed, same_data):
            item = item.model_copy(update={"direction": None})
        found.append(_overlapping(item, left.throughput, right.throughput))
    return Difference(
        kind="reports",
        before=labels[0],
        after=labels[1],
        figures=tuple(found),
        ops=changes.counts(left.optimized, right.optimized, "ops"),
        weights=changes.counts(left.optimized, right.optimized, "weight_bytes"),
        layers=changes.layers(left.layers, right.layers),
        gates=changes.texts(
            {gate.gate: "held" if gate.passed else "missed" for gate in left.gates},
            {gate.gate: "held" if gate.passed else "missed" for gate in right.gates},
        ),
        environment=_environment(left, right),
        notes=tuple(_cautions(left, right)),
    )


def _comparable(name: str, timed_alike: bool, same_data: bool) -> bool:
    head = name.partition(".")[0]
    if head in ("latency", "throughput", "energy"):
        return timed_alike
    return same_data or head not in ("accuracy", "metric", "drop")


def _same_data(before: earlier.Earlier, after: earlier.Earlier) -> bool:
    digests = [(side.data.get("evaluation") or {}).get("sha256") for side in (before, after)]
    return bool(digests[0] == digests[1])


def _turned(name: str, ratio: Ratio | None) -> Ratio | None:
    """A throughput's ratio is the latency's turned over."""
    if ratio is None or name != "throughput":
        return ratio
    return Ratio(1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low)


def _overlapping(
    change: FigureChange, before: ThroughputResult | None, after: ThroughputResult | None
) -> FigureChange:
    """A speedup whose intervals overlap did not change significantly."""
    over = {"speedup": "original", "speedup_over_export": "exported"}.get(change.name)
    if over is None or before is None or after is None or change.direction is None:
        return change
    found = [
        item for side in (before, after) for item in side.speedups if (item.of, item.over) == ("optimized", over)
    ]
    if len(found) == 2 and found[0].low <= found[1].high and found[1].low <= found[0].high:
        return change.model_copy(update={"direction": "no significant difference"})
    return change


def _environment(before: earlier.Earlier, after: earlier.Earlier) -> tuple[TextChange, ...]:
    return changes.texts(_surroundings(before), _surroundings(after))


def _surroundings(report: earlier.Earlier) -> dict[str, str]:
    found: dict[str, str] = {}
    if report.environment is not None:
        there = report.environment
        found = {"python": there.python, "platform": there.platform, "processor": there.processor}
        found |= {"cores": str(there.cores), "devices": ", ".join(there.devices), **there.libraries}
    if report.throughput is not None:
        found["threads"] = str(report.throughput.threads)
    return found


def _cautions(before: earlier.Earlier, after: earlier.Earlier) -> Iterator[str]:
    if not _same_data(before, after):
        yield "The two were evaluated on different data: their accuracy figures are not comparable."
    if before.throughput is not None and after.throughput is not None:
        if not regression.timed_alike(before.throughput, after.throughput):
            yield "The two were timed at different shapes or thread counts: their latencies are not comparable."
        else:
            yield (
                "The two were timed at different times: the interval covers the noise within each measurement, "
                "not what else the machine did. `speedup` compares each with its own original."
            )
    if before.name and after.name and before.name != after.name:
        yield f"The reports are of different recipes: '{before.name}' and '{after.name}'."
