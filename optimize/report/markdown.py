"""The report as Markdown, short enough for a pull-request comment; long tables are folded and cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from optimize.console import printable
from optimize.facts import GateResult
from optimize.report import headline, rows, wording
from optimize.report.model import Report

MARKS = {"PASS": "✅", "FAIL": "❌", "ERROR": "⚠️", "PARTIAL": "⏸️"}
MAXIMUM_ROWS = 12
MAXIMUM_CELL = 160
"""A longer text is cut in a table; report.json has all of it."""


def render(report: Report) -> str:
    """The text. Everything that comes from a model or a user is escaped."""
    parts = [
        f"## {MARKS[report.verdict]} {report.verdict}: {text(headline.sentence(report))}",
        f"**{text(report.name)}**: {text(headline.reason(report))}",
        *_heads(report),
        *_gates(report.gates),
        *_blame(report),
        *_accuracy(report),
        *_passes(report),
        *_operators(report),
        *_run(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(raw: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no mention, no link, one line."""
    line = wording.one_line(raw)
    if len(line) > 4 * MAXIMUM_CELL:
        line = line[: 4 * MAXIMUM_CELL] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
    # Stops that would link by themselves: "www.", "http://", "#12".
    line = re.sub(r"(?i)\b(https?|ftp)://", r"\1:&#47;&#47;", line)
    line = re.sub(r"(?i)\bwww\.", "www&#46;", line)
    return re.sub(r"#(?=\d)(?<!&#)", "&#35;", line)


def code(raw: str) -> str:
    """Text as a code span that holds in a table too, whatever backticks and pipes it has."""
    line = wording.one_line(raw).strip()
    if not line:
        return ""
    if len(line) > MAXIMUM_CELL:
        line = line[:MAXIMUM_CELL] + "…"
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")


def _table(head: Sequence[str], body: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if index in right else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _heads(report: Report) -> list[str]:
    body = [
        (head.title, f"**{text(f'{head.value} {head.unit}'.strip())}**", "<br>".join(map(text, head.lines)))
        for head in headline.headlines(report)
    ]
    return [_table(("", "", ""), body)]


def _gates(gates: Sequence[GateResult]) -> list[str]:
    if not gates:
        return []
    body = []
    for gate in sorted(gates, key=lambda gate: gate.passed):
        value, limit = wording.against(gate.value, gate.limit, gate.unit)
        sign = "≥" if gate.gate.endswith(".min") else "≤"
        note = f" ({text(gate.note)})" if gate.note else ""
        body.append((code(gate.gate), value, f"{sign} {limit}", f"{'✅' if gate.passed else '❌'}{note}"))
    return [_table(("Gate", "Measured", "Limit", ""), body, right=(1, 2))]


def _blame(report: Report) -> list[str]:
    blame = report.blame
    if blame is None:
        return []
    parts = [f"Most was lost in {code(blame.stage)}. {text(blame.reason)}".rstrip()]
    if blame.tensors:
        body = [
            (
                code(tensor.module or tensor.value),
                code(tensor.op_type),
                wording.share(tensor.added),
                wording.decibel(tensor.sqnr_db),
                wording.likeness(tensor.cosine),
            )
            for tensor in blame.tensors[:5]
        ]
        head = ("Worst inner values", "Operator", "Noise added", "SQNR", "Cosine")
        parts.append(_table(head, body, right=(2, 3, 4)))
    if blame.remedy:
        lines = [printable(line) for line in blame.remedy.splitlines()[:40]]
        parts.append("To leave the worst out, put this in place of the pass's entry under `passes:`.")
        fence = "`" * max(3, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
        parts.append("\n".join([f"{fence}yaml", *lines, fence]))
    if blame.check:
        parts.append(text(blame.check))
    return parts


def _accuracy(report: Report) -> list[str]:
    accuracy = rows.accuracy_rows(report)
    if len(accuracy) < 2:
        return []
    shown = accuracy if len(accuracy) <= MAXIMUM_ROWS else (accuracy[0], *accuracy[1 - MAXIMUM_ROWS :])
    body = [
        (code(row.stage), text("; ".join(row.failures)), "", "")
        if row.failures
        else (
            code(row.stage),
            wording.number(row.relative_l2),
            wording.decibel(row.sqnr_db),
            wording.likeness(row.cosine),
        )
        for row in shown
    ]
    return [_table(("Accuracy after", "Relative error", "SQNR", "Cosine"), body, right=(1, 2, 3))]


def _passes(report: Report) -> list[str]:
    if not report.passes:
        return []
    body = [
        (
            code(record.name),
            f"{rows.rewrites(record):,}",
            f"{record.nodes_before:,} → {record.nodes_after:,}",
            f"{len(record.skips):,}",
            wording.seconds(record.seconds),
        )
        for record in [record for record in report.passes if not rows.is_idle(record)][:40]
    ]
    table = _table(("Pass", "Rewrites", "Nodes", "Left alone", "Time"), body, right=(1, 2, 3, 4))
    idle = [record.name for record in report.passes if rows.is_idle(record)]
    if idle:
        table += "\n\nFound nothing to do: " + ", ".join(code(name) for name in idle[:40]) + "."
    return [_folded(wording.count(len(report.passes), "pass"), table)]


def _operators(report: Report) -> list[str]:
    ops = [row for row in rows.op_rows(report) if row.change]
    if not ops:
        return []
    body = [(code(row.name), f"{row.before:,}", f"{row.after:,}") for row in ops[:MAXIMUM_ROWS]]
    table = _table(("Operator", "Before", "After"), body, right=(1, 2))
    return [_folded("Operators before and after", table)]


def _run(report: Report) -> list[str]:
    here = report.environment
    words = [
        f"{here.processor}, {wording.count(here.cores, 'core')}",
        *here.devices,
        f"Python {here.python}",
        *(f"{name} {version}" for name, version in list(here.libraries.items())[:12]),
    ]
    reused = sum(stage.outcome == "reused" for stage in report.stages)
    took = sum(stage.seconds for stage in report.stages if stage.outcome in ("done", "failed"))
    stages = f"{wording.count(len(report.stages), 'stage')} in {wording.seconds(took)}, {reused} reused"
    if report.throughput is not None and report.throughput.energy_missing:
        words.append(f"energy not measured ({report.throughput.energy_missing.partition(':')[0]} counters missing)")
    return [f"<sub>{text(', '.join(words))} · {stages} · optimize {text(report.tool_version)}</sub>"]
