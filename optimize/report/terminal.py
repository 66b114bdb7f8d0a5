"""The report's summary for a terminal: the verdict, the three numbers, the gates, where the rest went."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimize.console import printable, rich_console
from optimize.report import headline, rows, wording
from optimize.report.model import Report

COLOURS = {"PASS": "green", "FAIL": "red", "ERROR": "yellow", "PARTIAL": "cyan"}


def show(report: Report, output: Path | None = None, *, console: Console | None = None) -> None:
    """Print the summary, to stdout unless told otherwise. Text from a model has control characters escaped.

    Args:
        output: The folder the run's files lie in, to point to its page.
    """
    console = console or rich_console()
    colour = COLOURS[report.verdict]
    verdict = Text()
    verdict.append(report.verdict, style=f"bold {colour}")
    verdict.append(f"  {headline.sentence(report)}", style="bold")
    console.print(verdict)
    console.print(_text(f"{report.name}: {headline.reason(report)}"))
    if any(head.value != wording.ABSENT for head in headline.headlines(report)):
        console.print()
        console.print(_heads(report))
    if report.gates:
        console.print()
        console.print(_gates(report))
    if report.accuracy:
        console.print()
        console.print(_accuracy(report))
    if report.blame:
        console.print()
        _blame(report, console)
    for note in report.notes:
        console.print(_text(note))
    if output is not None:
        console.print()
        console.print(_text(f"{output / 'report.html'}", "dim"))


def _text(raw: str, style: str = "") -> Text:
    return Text(wording.one_line(raw), style=style)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        is_number = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if is_number else "left", overflow="fold")
    return table


def _heads(report: Report) -> Table:
    table = _table("", "", "")
    table.show_header = False
    for head in headline.headlines(report):
        table.add_row(
            _text(head.title, "dim"),
            _text(f"{head.value} {head.unit}", "bold"),
            Text("\n").join([_text(line) for line in head.lines]),
        )
    return table


def _gates(report: Report) -> Table:
    table = _table("Gate", ">Measured", ">Limit", "", "")
    for gate in report.gates:
        value, limit = wording.against(gate.value, gate.limit, gate.unit)
        mark = Text("held", style="green") if gate.passed else Text("missed", style="bold red")
        bound = ">=" if gate.gate.endswith(".min") else "<="
        table.add_row(_text(gate.gate), value, f"{bound} {limit}", mark, _text(gate.note, "dim"))
    return table


def _accuracy(report: Report) -> Table:
    """The waterfall: every stage's error, with the stage that added most in bold."""
    accuracy = rows.accuracy_rows(report)
    before, added = 0.0, []
    for row in accuracy:
        added.append((row.relative_l2 or before) - before)
        before = row.relative_l2 if row.relative_l2 is not None else before
    largest = max(range(len(added)), key=added.__getitem__)
    table = _table("Accuracy after", ">Relative error", ">SQNR", ">Cosine", "")
    for index, row in enumerate(accuracy):
        style = "bold" if index == largest and len(accuracy) > 1 else ""
        table.add_row(
            _text(row.stage, style),
            Text(wording.number(row.relative_l2), style=style),
            Text(wording.decibel(row.sqnr_db), style=style),
            Text(wording.likeness(row.cosine), style=style),
            _text("; ".join(row.failures), "red"),
        )
    return table


def _blame(report: Report, console: Console) -> None:
    blame = report.blame
    assert blame is not None
    console.print(_text(f"Most was lost in {blame.stage}. {blame.reason}".rstrip()))
    if blame.tensors:
        table = _table("Worst inner values", "Operator", ">Noise added", ">SQNR", ">Cosine")
        for tensor in blame.tensors[:5]:
            table.add_row(
                _text(tensor.module or tensor.value),
                _text(tensor.op_type),
                wording.share(tensor.added),
                wording.decibel(tensor.sqnr_db),
                wording.likeness(tensor.cosine),
            )
        console.print(table)
    if blame.remedy:
        console.print(_text("To leave the worst out, put this in place of the pass's entry under passes:"))
        console.print(Text(printable(blame.remedy.rstrip())))
    if blame.check:
        console.print(_text(blame.check))
