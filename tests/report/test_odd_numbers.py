"""A report with an odd number anywhere is refused in a sentence or shown; no view stumbles over it."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from optimize.errors import UsageError
from optimize.report import html, markdown, reading, terminal
from optimize.sweep_facts import Point, Sweep
from tests.support import reports

Path = tuple[str | int, ...]


def numbers(data: Any, path: Path = ()) -> Iterator[Path]:
    """Where numbers stand; of a list the first item stands for all."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from numbers(value, (*path, key))
    elif isinstance(data, list):
        for value in data[:1]:
            yield from numbers(value, (*path, 0))
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path


def changed(data: Any, path: Path, value: float) -> str:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(data)


@pytest.fixture(scope="module")
def written() -> Any:
    points = tuple(Point(label=name, cosine=0.99, latency_ms=3.0, speedup=1.2, size_bytes=100) for name in "ab")
    report = reports.failing().model_copy(update={"sweep": Sweep(label="a", points=points)})
    return json.loads(report.model_dump_json())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -1, 0])
def test_a_report_with_an_odd_number_is_refused_or_shown(value: float, written: Any) -> None:
    aside = ("schema_version", "recipe", "target", "source", "data", "environment", "artifacts", "engine")
    places = [path for path in numbers(written) if path[0] not in aside]
    assert len(places) > 50
    shown = 0
    for path in places:
        try:
            report = reading.parse(changed(written, path, value), "report.json")
        except UsageError:
            continue
        shown += 1
        for view in (html.render, markdown.render):
            assert view(report)
        terminal.show(report, console=Console(file=io.StringIO()))
    assert shown or value != 0
