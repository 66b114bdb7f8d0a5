"""Points in the plane of latency and accuracy as a table and a plot, the Pareto front marked."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Sequence

import jinja2
from markupsafe import Markup, escape

from optimize.report import markdown as marks
from optimize.report import wording
from optimize.sweep_facts import Point

HEADS = ("", "Run", "Verdict", "Cosine", "Latency", "Speedup", "Size")

_WIDTH, _HEIGHT = 960, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 16, 16, 46
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FLOOR = 1e-7
"""Errors below this are drawn at it: single precision tells no less."""

_LETTER = 7
"""Width of a letter of a name, to see whether it fits to the left of its point, where no line runs."""


def cells(point: Point) -> tuple[str, ...]:
    """A point's texts, under `HEADS`."""
    return (
        "★" if point.is_on_front else "",
        wording.one_line(point.label),
        point.verdict or wording.ABSENT,
        wording.likeness(point.cosine),
        wording.milliseconds(point.latency_ms),
        wording.ratio(point.speedup),
        wording.size(point.size_bytes),
    )


def table(points: Sequence[Point]) -> str:
    """A plain table for the terminal; ★ marks the Pareto front."""
    lines = [HEADS, *(cells(point) for point in points)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADS))]
    text = [
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text += [f"{wording.one_line(f'{point.label}: {point.error}')}" for point in points if point.error]
    return "\n".join(text)


def markdown(points: Sequence[Point]) -> str:
    """The same for a pull-request comment."""
    lines = [f"| {' | '.join(HEADS)} |", "| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(map(marks.text, cells(point)))} |" for point in points]
    lines += [f"\n{marks.text(point.label)}: {marks.text(point.error)}" for point in points if point.error]
    return "\n".join(lines) + "\n"


def page(points: Sequence[Point]) -> str:
    """A self-contained page: plot above, table below; no script, no network."""
    folder = importlib.resources.files("optimize.report") / "page"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["line"] = wording.one_line
    return environment.from_string((folder / "sweep.html.j2").read_text(encoding="utf-8")).render(
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),  # ours, not the model's
        plot=plot(points),
        heads=HEADS,
        rows=[(point, cells(point)) for point in points],
        front=sum(point.is_on_front for point in points),
    )


def plot(points: Sequence[Point], this: str = "") -> Markup:
    """An SVG scatter plot: latency across, 1 − cosine (logarithmic) up; a dot's area is its model's size.

    Args:
        points: With the front marked.
        this: Label of the one to point out.
    """
    shown = [(item, item.cosine, item.latency_ms) for item in points if item.latency_ms is not None]
    placed = [(item, max(1 - cosine, _FLOOR), ms) for item, cosine, ms in shown if cosine is not None and ms]
    if not placed:
        return Markup("")
    end = max(ms for _, _, ms in placed) * 1.08
    powers = [math.log10(error) for _, error, _ in placed]
    low, high = math.floor(min(powers) - 0.2), math.ceil(max(powers) + 0.2)
    x = _scale(0.0, end, _LEFT, _WIDTH - _RIGHT)
    y = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    label = "; ".join(
        f"{item.label}: cosine {wording.likeness(item.cosine)}, {wording.milliseconds(ms)}"
        for item, _, ms in placed
    )
    parts = [
        f'<svg class="chart pareto" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"Accuracy lost against latency. {wording.one_line(label)}")}">',
        *_grid(x, y, end, low, high),
        _front_line(placed, x, y),
    ]
    largest = max((item.size_bytes or 0 for item, _, _ in placed), default=0) or 1
    for item, error, ms in sorted(placed, key=lambda entry: -(entry[0].size_bytes or 0)):
        parts.extend(_dot(item, x(ms), y(math.log10(error)), (item.size_bytes or 0) / largest, item.label == this))
    return Markup("".join((*parts, "</svg>")))


def _grid(x: Callable[[float], float], y: Callable[[float], float], end: float, low: int, high: int) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    step = 10.0 ** math.floor(math.log10(end))
    step = next(step / factor for factor in (1, 2, 5, 10) if end / (step / factor) >= 4)
    for index in range(int(end / step) + 1):
        at = x(index * step)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{index * step:g}</text>')
    for power in range(low, high + 1):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(power):.1f}" y2="{y(power):.1f}"/>')
        tick = "0" if 10.0**power < _FLOOR else f"10{str(power).translate(_RAISED)}" if power else "1"
        parts.append(f'<text x="{_LEFT - 8}" y="{y(power) + 4:.1f}" text-anchor="end">{tick}</text>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 8}" text-anchor="end">median latency, ms; left is better</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        "1 − cosine; down is better</text>"
    )
    return parts


def _front_line(
    placed: Sequence[tuple[Point, float, float]], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """Steps through the points that are best in latency and accuracy alone; others are on the front by size."""
    best = math.inf
    steps: list[str] = []
    for item, error, ms in sorted(placed, key=lambda entry: (entry[2], entry[1])):
        if item.is_on_front and error < best:
            at = (x(ms), y(math.log10(error)))
            steps.append(f"H{at[0]:.1f}V{at[1]:.1f}" if steps else f"M{at[0]:.1f} {at[1]:.1f}")
            best = error
    return f'<path class="front" d="{"".join(steps)}"/>' if len(steps) > 1 else ""


def _dot(item: Point, left: float, top: float, share: float, is_this: bool) -> list[str]:
    radius = 5 + 11 * math.sqrt(share)
    kind = "own" if item.is_on_front else "other"
    name = wording.one_line(item.label)
    is_left = left - radius - 6 - _LETTER * len(name) > _LEFT
    text = left - radius - 6 if is_left else left + radius + 6
    ring = f'<circle class="ring" cx="{left:.1f}" cy="{top:.1f}" r="{radius + 3:.1f}"/>' if is_this else ""
    return [
        f'<g class="{kind}"><circle class="point" cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}"/>{ring}',
        f'<text class="label" x="{text:.1f}" y="{top + 4:.1f}" text-anchor="{"end" if is_left else "start"}">',
        f"{escape(name)}</text></g>",
    ]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
