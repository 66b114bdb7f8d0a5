"""A difference as text for a terminal, Markdown for a pull request, and a page."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence

import jinja2
from markupsafe import Markup

from optimize.console import printable
from optimize.differences import CountChange, Difference, FigureChange, TextChange
from optimize.facts import GateResult
from optimize.report import markdown as marks
from optimize.report import wording

MOST = 20
"""Rows of a table in text and Markdown; JSON has all of them."""

HEADLINES = ("accuracy.cosine", "latency.p50", "size", "memory")
"""Figures worth the headline; task metrics are too."""

RELATIVE = ("ms", "bytes", "1/s", "J")
"""Units of figures whose change is told in per cent."""

SIGNS = {"better": "↑ better", "worse": "↓ worse"}

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""A title, column heads, and rows of cells."""


def text(difference: Difference, verdicts: Sequence[GateResult] = ()) -> str:
    """Plain columns."""
    lines = [f"before  {difference.before}", f"after   {difference.after}"]
    for title, heads, rows in _tables(difference, verdicts):
        shown = [heads, *rows[:MOST]]
        widths = [max(len(row[column]) for row in shown) for column in range(len(heads))]
        lines += ["", title]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in shown
        ]
        if len(rows) > MOST:
            lines.append(f"  and {len(rows) - MOST} more")
    lines += [""] * bool(difference.notes) + [f"note: {note}" for note in difference.notes]
    return printable("\n".join(lines))


def markdown(difference: Difference, verdicts: Sequence[GateResult] = ()) -> str:
    """Tables for a comment; everything from models and users escaped."""
    parts = [
        f"## {headline(difference, verdicts)}",
        f"{marks.code(difference.before)} → {marks.code(difference.after)}",
    ]
    for title, heads, rows in _tables(difference, verdicts):
        body = [" | ".join(map(marks.text, row)) for row in rows[:MOST]]
        more = [f"\nand {len(rows) - MOST} more"] * (len(rows) > MOST)
        head = f"| {' | '.join(heads)} |"
        rule = f"|{' --- |' * len(heads)}"
        parts.append("\n".join([f"**{title}**\n", head, rule, *(f"| {row} |" for row in body), *more]))
    parts += [marks.text(note) for note in difference.notes]
    return "\n\n".join(parts) + "\n"


def page(difference: Difference, verdicts: Sequence[GateResult] = ()) -> str:
    """A self-contained page: no script, no network."""
    folder = importlib.resources.files("optimize.report") / "page"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["line"] = wording.one_line
    template = environment.from_string((folder / "difference.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),  # ours, not the model's
        difference=difference,
        headline=headline(difference, verdicts),
        state="FAIL" if _is_failure(difference, verdicts) else "PASS",
        tables=list(_tables(difference, verdicts)),
    )


def headline(difference: Difference, verdicts: Sequence[GateResult] = ()) -> str:
    """One line: what failed, else what is better and what is worse."""
    missed = [item.gate for item in verdicts if not item.passed]
    if difference.failures:
        return f"FAIL: {len(difference.failures)} outputs cannot be compared"
    if missed:
        return f"FAIL: {', '.join(missed)}"
    told = [item for item in difference.figures if item.name in HEADLINES or item.name.startswith("metric.")]
    parts = [
        f"{word}: {', '.join(_short(item) for item in told if item.direction == word)}"
        for word in ("better", "worse")
        if any(item.direction == word for item in told)
    ]
    if difference.kind == "models":
        parts += [f"cosine {wording.likeness(item.after)}" for item in told if item.name == "accuracy.cosine"]
    line = "; ".join(parts) or ("no significant difference" if difference.figures else "nothing to compare")
    return line[0].upper() + line[1:]


def _short(item: FigureChange) -> str:
    name = item.name.removesuffix(".p50").removeprefix("accuracy.").removeprefix("metric.")
    if item.unit in ("ms", "bytes") and item.before and item.after is not None:
        return f"{name} {_percent(item.after / item.before)}"
    return f"{name} {wording.likeness(item.before)} → {wording.likeness(item.after)}"


def _is_failure(difference: Difference, verdicts: Sequence[GateResult]) -> bool:
    return bool(difference.failures) or not all(item.passed for item in verdicts)


def _tables(difference: Difference, verdicts: Sequence[GateResult]) -> Iterator[Table]:
    sides = ("before", "after")
    if verdicts:
        yield "Gates", ("gate", "measured", "limit", ""), [_verdict(item) for item in verdicts]
    failures: list[tuple[str, ...]] = [(item.output, item.failure) for item in difference.outputs if item.failure]
    if failures:
        yield "Outputs that cannot be accepted", ("output", "why"), failures
    if difference.figures:
        yield "Figures", ("figure", *sides, "change"), [_figure(item) for item in difference.figures]
    if difference.flips is not None:
        changed, samples = difference.flips
        yield "Decisions", ("changed", "of"), [(f"{changed:,}", f"{samples:,}")]
    for title, changes in (("Gates that changed", difference.gates), ("Layer formats", difference.layers)):
        if changes:
            yield title, ("", *sides), [_text(item) for item in changes]
    if difference.ops:
        yield "Operators", ("operator", *sides, "change"), [_count(item) for item in difference.ops]
    if difference.weights:
        yield "Weights", ("type", *sides), [_weight(item) for item in difference.weights]
    if difference.environment:
        yield "Environment", ("", *sides), [_text(item) for item in difference.environment]


def _verdict(item: GateResult) -> tuple[str, ...]:
    left, right = wording.against(item.value, item.limit, item.unit)
    held = "held" if item.passed else "missed"
    return item.gate, left, right, f"{held}: {item.note}" if item.note else held


def _figure(item: FigureChange) -> tuple[str, ...]:
    before, after = (wording.measured(value, item.unit) for value in (item.before, item.after))
    change = SIGNS.get(item.direction or "", item.direction or "")
    if item.ratio is not None and item.low is not None and item.high is not None:
        change += f", {_percent(item.ratio)} (95 %: {_percent(item.low)} to {_percent(item.high)})"
    elif item.unit in RELATIVE and item.before and item.after is not None and item.before != item.after:
        change += f", {_percent(item.after / item.before)}"
    return item.name, before, after, change


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def _text(item: TextChange) -> tuple[str, ...]:
    return item.what, item.before or wording.ABSENT, item.after or wording.ABSENT


def _weight(item: CountChange) -> tuple[str, ...]:
    return item.what, wording.size(item.before), wording.size(item.after)


def _count(item: CountChange) -> tuple[str, ...]:
    return item.what, f"{item.before:,}", f"{item.after:,}", f"{item.after - item.before:+,}".replace("-", "−")
