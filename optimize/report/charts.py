"""Inline SVG drawings: no script, colours from the page's style, a text for those who cannot see."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from optimize.facts import Latency
from optimize.report import wording

WIDTH = 960
ROW = 58
LEFT = 8
RIGHT = 8
MAXIMUM_DOTS = 400
"""More dots than this hide each other; the percentiles are taken from all samples all the same."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One bar of a waterfall: from the level before to the level after, as shares of the axis (0 to 1)."""

    start: float
    end: float

    @property
    def left(self) -> float:
        return min(self.start, self.end)

    @property
    def width(self) -> float:
        return abs(self.end - self.start)


def waterfall(levels: Sequence[float | None]) -> tuple[Step | None, ...]:
    """Bars for levels that follow each other; None where a level is unknown (the next starts from the last
    known one). The axis runs from 0 to the highest level."""
    known = [level for level in levels if level is not None and math.isfinite(level)]
    top = max(known, default=0.0) or 1.0
    steps: list[Step | None] = []
    before = 0.0
    for level in levels:
        if level is None or not math.isfinite(level):
            steps.append(None)
            continue
        steps.append(Step(before / top, level / top))
        before = level
    return tuple(steps)


def bar(step: Step | None, is_last: bool = False) -> Markup:
    """One waterfall bar; a hairline marks the level so that a bar of no width still shows where it stands."""
    if step is None:
        return Markup("")
    kind = "total" if is_last else "loss" if step.end >= step.start else "gain"
    left, width = (0.0, step.end) if is_last else (step.left, step.width)
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" x="0" y="5.5" width="100" height="1"/>'
        f'<rect class="{kind}" x="{left * 100:.2f}" y="1" width="{max(width * 100, 0.6):.2f}" height="10"/>'
        f"</svg>"
    )


def latency_strips(contenders: Sequence[Latency]) -> Markup:
    """Every timed run of every contender on one axis in milliseconds from 0, with median and p90 marked.

    The axis ends at twice the slowest contender's p90, or six times its median if that is less. Runs beyond are
    counted at the edge, not drawn, so that hiccups do not squeeze the rest.
    """
    timed = [item for item in contenders if item.samples_ms]
    if not timed:
        return Markup("")
    slowest = max(min(max(item.p90_ms or 0.0, item.p50_ms), 3 * item.p50_ms) for item in timed)
    end = _round_up(min(max(max(item.samples_ms) for item in timed), 2 * slowest) * 1.02)
    step = _tick(end)
    inner = WIDTH - LEFT - RIGHT

    def x(value: float) -> float:
        return LEFT + inner * value / end

    height = ROW * len(timed) + 34
    label = "; ".join(f"{item.contender}: median {wording.milliseconds(item.p50_ms)}" for item in timed)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"Latency of every timed run. {label}")}">'
    ]
    ticks = round(end / step)
    for index in range(ticks + 1):
        at = x(index * step)
        anchor = "start" if index == 0 else "end" if index == ticks else "middle"
        unit = " ms" if index == ticks else ""
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height - 22}"/>')
        parts.append(
            f'<text class="axis" x="{at:.1f}" y="{height - 6}" text-anchor="{anchor}">{index * step:g}{unit}</text>'
        )
    for row, item in enumerate(timed):
        parts.extend(_strip(item, row, end, x))
    parts.append("</svg>")
    return Markup("".join(parts))


def _strip(item: Latency, row: int, end: float, at: Callable[[float], float]) -> list[str]:
    top = row * ROW
    middle = top + 38
    parts = [
        f'<g class="contender {"own" if item.contender == "optimized" else "other"}">',
        f'<text class="label" x="{LEFT + 4}" y="{top + 16}">{escape(item.contender)}'
        f'<tspan class="aside" dx="8">{escape(wording.one_line(item.title))}</tspan>'
        f'<tspan class="value" dx="8">{wording.milliseconds(item.p50_ms)}</tspan></text>',
    ]
    radius = 2.2 if len(item.samples_ms) > 30 else 3.6
    every = max(1, math.ceil(len(item.samples_ms) / MAXIMUM_DOTS))
    for index, sample in enumerate(item.samples_ms[::every]):
        if sample <= end:
            # Golden-ratio steps spread the dots evenly and the same way every time.
            rise = ((index * 0.618034) % 1 - 0.5) * 16
            parts.append(f'<circle class="dot" cx="{at(sample):.1f}" cy="{middle + rise:.1f}" r="{radius}"/>')
    median = at(min(item.p50_ms, end))
    parts.append(
        f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="{middle - 13}" y2="{middle + 13}"/>'
    )
    if item.p90_ms is not None and item.p90_ms <= end:
        p90 = at(item.p90_ms)
        parts.append(f'<line class="p90" x1="{p90:.1f}" x2="{p90:.1f}" y1="{middle - 11}" y2="{middle + 11}"/>')
    beyond = sum(sample > end for sample in item.samples_ms)
    if beyond:
        parts.append(
            f'<text class="axis" x="{WIDTH - RIGHT}" y="{top + 16}" text-anchor="end">'
            f"{beyond} beyond, up to {wording.milliseconds(max(item.samples_ms))}</text>"
        )
    parts.append("</g>")
    return parts


def _tick(end: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives four to nine steps."""
    power = 10.0 ** math.floor(math.log10(end / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if end / (power * factor) <= 9)


def _round_up(end: float) -> float:
    end = max(end, 1e-6)
    step = _tick(end)
    return math.ceil(end / step - 1e-9) * step
