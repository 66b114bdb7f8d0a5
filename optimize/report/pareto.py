"""A sweep's points as a table and a plot: accuracy lost against latency, the front marked."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_HEADS = ("", "run", "verdict", "cosine", "latency ms", "speedup", "size MB")
_WIDTH, _HEIGHT, _MARGIN = 760, 420, 60
_FLOOR = 1e-7


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts, under `_HEADS`."""
    return (
        "★" if row["is_on_front"] else "",
        row["label"],
        row["verdict"],
        _number(row["cosine"], ".5f"),
        _number(row["latency_ms"], ".2f"),
        _number(row["speedup"], ".2f"),
        _number(row["size_bytes"] / 1e6 if row["size_bytes"] is not None else None, ".1f"),
    )


def table(rows: Sequence[Row]) -> str:
    """A plain table for the terminal; ★ marks the Pareto front."""
    lines = [_HEADS, *(cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEADS))]
    text = [
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text += [f"{row['label']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join(text)


def markdown(rows: Sequence[Row]) -> str:
    """The same for a pull-request comment."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row]) -> str:
    """A self-contained page: plot above, table below."""
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in rows
    )
    heads = "".join(f"<th scope='col'>{html.escape(head)}</th>" for head in _HEADS)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Sweep</title>"
        "<meta name='viewport' content='width=device-width'><style>"
        ":root{color-scheme:light dark;--line:#8886;--front:#0a7d55;--other:#8a94a6}"
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);"
        "text-align:right}td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}svg{width:100%;height:auto}"
        "text{fill:currentColor;font-size:12px}</style><h1>Sweep</h1>"
        f"{plot(rows)}<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></html>"
    )


def plot(rows: Sequence[Row]) -> str:
    """An SVG scatter plot: latency in ms across, 1 − cosine (logarithmic) up; area of a dot is its model's size."""
    shown = [row for row in rows if row["cosine"] is not None and row["latency_ms"] is not None]
    if not shown:
        return "<p>No run has both an accuracy and a latency to plot.</p>"
    across = [row["latency_ms"] for row in shown]
    up = [math.log10(max(1 - row["cosine"], _FLOOR)) for row in shown]
    largest = max(row["size_bytes"] or 1 for row in shown)
    horizontal = _scale(0.0, max(across) * 1.1, _MARGIN, _WIDTH - 20)
    vertical = _scale(min(up) - 0.3, max(up) + 0.3, _HEIGHT - _MARGIN, 20)
    parts = [
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='accuracy lost against latency'>",
        f"<path d='M{_MARGIN} 20V{_HEIGHT - _MARGIN}H{_WIDTH - 20}' fill='none' stroke='var(--line)'/>",
        f"<text x='{_WIDTH / 2}' y='{_HEIGHT - 15}' text-anchor='middle'>median latency, ms (left: better)</text>",
        f"<text x='16' y='{_HEIGHT / 2}' text-anchor='middle' transform='rotate(-90 16 {_HEIGHT / 2})'>"
        "1 − cosine, logarithmic (down is better)</text>",
    ]
    for tick in _ticks(max(across) * 1.1):
        parts.append(
            f"<text x='{horizontal(tick):.1f}' y='{_HEIGHT - _MARGIN + 18}' text-anchor='middle'>{tick:g}</text>"
        )
    for power in range(math.ceil(min(up) - 0.3), math.floor(max(up) + 0.3) + 1):
        parts.append(f"<text x='{_MARGIN - 8}' y='{vertical(power) + 4:.1f}' text-anchor='end'>1e{power}</text>")
    for row, left, height in zip(shown, across, up, strict=True):
        colour = "var(--front)" if row["is_on_front"] else "var(--other)"
        radius = 4 + 10 * math.sqrt((row["size_bytes"] or 1) / largest)
        place = f"cx='{horizontal(left):.1f}' cy='{vertical(height):.1f}'"
        name = html.escape(row["label"])
        parts.append(
            f"<circle {place} r='{radius:.1f}' fill='{colour}' fill-opacity='.7'><title>{name}</title></circle>"
        )
        parts.append(f"<text x='{horizontal(left) + radius + 4:.1f}' y='{vertical(height) + 4:.1f}'>{name}</text>")
    return "".join(parts) + "</svg>"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _scale(low: float, high: float, start: float, end: float) -> Any:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(high)) if high > 0 else 1.0
    if high / step < 3:
        step /= 2
    return [step * count for count in range(int(high / step) + 1)]
