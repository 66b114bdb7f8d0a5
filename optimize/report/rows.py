"""The report's tables as rows, for every view: what to show, in which order, how much of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optimize.facts import AccuracyResult, Energy, LayerFact, PassRecord
from optimize.report import wording
from optimize.report.headline import worst
from optimize.report.model import Report


@dataclasses.dataclass(frozen=True)
class AccuracyRow:
    """A stage of the accuracy waterfall; figures are the worst output's."""

    stage: str
    relative_l2: float | None
    sqnr_db: float | None
    cosine: float | None
    metrics: tuple[tuple[str, float], ...]
    failures: tuple[str, ...]


def accuracy_rows(report: Report) -> tuple[AccuracyRow, ...]:
    """Every stage compared with the original, in the order of the run."""
    return tuple(_accuracy_row(result) for result in report.accuracy)


def _accuracy_row(result: AccuracyResult) -> AccuracyRow:
    return AccuracyRow(
        stage=result.stage,
        relative_l2=worst(result, "relative_l2", low_is_bad=False),
        sqnr_db=worst(result, "sqnr_db", low_is_bad=True),
        cosine=worst(result, "cosine", low_is_bad=True),
        metrics=tuple(result.metrics.items()),
        failures=result.failures,
    )


@dataclasses.dataclass(frozen=True)
class CountRow:
    """A count before and after; `share` of the largest count, for a bar."""

    name: str
    before: int
    after: int
    largest: int

    @property
    def change(self) -> int:
        return self.after - self.before


def op_rows(report: Report) -> tuple[CountRow, ...]:
    """Operators, the most changed first."""
    return _counts(report.exported.ops if report.exported else {}, _ops_after(report))


def weight_rows(report: Report) -> tuple[CountRow, ...]:
    """Weight bytes per data type, the most changed first."""
    before = report.exported.weight_bytes if report.exported else {}
    after = report.optimized.weight_bytes if report.optimized else {}
    return _counts(*({LONG.get(name, name): size for name, size in side.items()} for side in (before, after)))


def _ops_after(report: Report) -> Mapping[str, int]:
    return report.optimized.ops if report.optimized else {}


def _counts(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[CountRow, ...]:
    largest = max([*before.values(), *after.values()], default=0) or 1
    rows = [CountRow(name, before.get(name, 0), after.get(name, 0), largest) for name in {*before, *after}]
    return tuple(sorted(rows, key=lambda row: (-abs(row.change), -row.after, row.name)))


def metered(report: Report) -> tuple[str, ...]:
    """The devices whose energy was measured."""
    return tuple(dict.fromkeys(used.device for used in _energies(report)))


def energy_sources(report: Report) -> tuple[str, ...]:
    """Who counted the energy, and what."""
    return tuple(dict.fromkeys(used.source for used in _energies(report)))


def _energies(report: Report) -> Iterator[Energy]:
    """Of every contender; one whose counter went away has none."""
    timed = report.throughput.contenders if report.throughput else ()
    return (used for item in timed for used in item.energy)


def rewrites(record: PassRecord) -> int:
    """How much a pass did."""
    return sum(pattern.found for pattern in record.patterns)


def is_idle(record: PassRecord) -> bool:
    """Whether a pass found nothing to do and has nothing to say."""
    near = any(pattern.near_misses or pattern.expected for pattern in record.patterns)
    return not (rewrites(record) or record.skips or record.changed or record.notes or near)


FAMILIES = (
    ("fp4", re.compile(r"^(float4|fp4|nvfp4|mxfp4)")),
    ("int4", re.compile(r"^u?int4")),
    ("fp8", re.compile(r"^(float8|fp8|mxfp8)")),
    ("int8", re.compile(r"^u?int8")),
    ("half", re.compile(r"^(float16|bfloat16|fp16|bf16)")),
    ("float", re.compile(r"^(float|float32|float64|double|tf32|fp32)$")),
)
LONG = {"float": "float32", "double": "float64"}
"""ONNX names two formats without their width."""

SHORT = {
    "float": "fp32",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
}


@dataclasses.dataclass(frozen=True)
class LayerCell:
    """One layer of the precision map."""

    layer: LayerFact
    family: str
    text: str


@dataclasses.dataclass(frozen=True)
class LayerMap:
    """Layers with the same name but for one number, a row; that number, the column.

    Attributes:
        columns: The numbers; None for layers without one.
        rows: (name with "*" for the number, a cell or None per column).
    """

    columns: tuple[int | None, ...]
    rows: tuple[tuple[str, tuple[LayerCell | None, ...]], ...]


def layer_map(layers: Iterable[LayerFact]) -> LayerMap:
    """Lay layers out by the first number in their names."""
    grid: dict[str, dict[int | None, LayerCell]] = {}
    for layer in layers:
        match = re.search(r"(?<![0-9A-Za-z])\d{1,4}(?![0-9A-Za-z])", layer.name)
        key = f"{layer.name[: match.start()]}*{layer.name[match.end() :]}" if match else layer.name
        index = int(match.group()) if match else None
        if index in grid.get(key, {}):
            key, index = layer.name, None
        another = 1
        while index in grid.get(key, {}):
            another += 1
            key = f"{layer.name} ({another})"
        text = SHORT.get(layer.weight, layer.weight) or SHORT.get(layer.activation, layer.activation)
        grid.setdefault(key, {})[index] = LayerCell(layer, family(layer.weight or layer.activation), text)
    numbers = sorted({index for row in grid.values() for index in row if index is not None})
    has_plain = any(None in row for row in grid.values())
    columns: tuple[int | None, ...] = (*((None,) if has_plain else ()), *numbers)
    return LayerMap(
        columns, tuple((name, tuple(row.get(column) for column in columns)) for name, row in grid.items())
    )


def family(number_format: str) -> str:
    """The family a number format is coloured as."""
    return next((name for name, pattern in FAMILIES if pattern.match(number_format)), "other")


@dataclasses.dataclass(frozen=True)
class FormatShare:
    """How many layers and weights are in one pair of formats."""

    weight: str
    activation: str
    family: str
    layers: int
    parameters: int
    share: float


def format_shares(layers: Iterable[LayerFact]) -> tuple[FormatShare, ...]:
    """Layers by (weight, activation) format, most weights first."""
    groups: dict[tuple[str, str], list[LayerFact]] = {}
    for layer in layers:
        groups.setdefault((layer.weight, layer.activation), []).append(layer)
    total = sum(layer.parameters for members in groups.values() for layer in members) or 1
    shares = [
        FormatShare(
            weight=weight,
            activation=activation,
            family=family(weight or activation),
            layers=len(members),
            parameters=sum(layer.parameters for layer in members),
            share=sum(layer.parameters for layer in members) / total,
        )
        for (weight, activation), members in groups.items()
    ]
    return tuple(sorted(shares, key=lambda item: (-item.parameters, -item.layers, item.weight)))


def plain(value: Any) -> str:
    """A fact of any shape as one line of text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return wording.number(value, 4)
    if isinstance(value, Mapping):
        return ", ".join(f"{wording.one_line(str(key))}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return wording.one_line(str(value)) if value is not None else wording.ABSENT
