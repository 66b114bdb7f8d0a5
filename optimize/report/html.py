"""The report as one HTML page: no script, no network, readable at a glance, in the dark and on paper."""

from __future__ import annotations

import importlib.resources
import io
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup
from ruamel.yaml import YAML

from optimize.console import printable
from optimize.facts import Environment, GateResult
from optimize.report import charts, front, headline, pareto, rows, wording
from optimize.report.model import Report

MARKS = {"PASS": "✓", "FAIL": "✗", "ERROR": "!", "PARTIAL": "…"}


def render(report: Report) -> str:
    """The page's text. Everything in it that comes from a model or a user is escaped."""
    page = importlib.resources.files("optimize.report") / "page"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        line=wording.one_line,
        lines=printable,
        plain=rows.plain,
        number=wording.number,
        ratio=wording.ratio,
        integer=lambda value: f"{value:,}",
        signed=lambda value: f"{value:+,}".replace("-", "−") if value else "0",
        decibel=wording.decibel,
        likeness=wording.likeness,
        milliseconds=wording.milliseconds,
        seconds=wording.seconds,
        joules=wording.joules,
        share=wording.share,
        size=wording.size,
        count=wording.count,
        dict=dict,
        gate_text=headline.gate_text,
        against=_against,
    )
    template = environment.from_string((page / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup((page / "page.css").read_text(encoding="utf-8")),  # ours, not the model's
        **_facts(report),
    )


def _facts(report: Report) -> dict[str, Any]:
    accuracy = rows.accuracy_rows(report)
    steps = charts.waterfall([row.relative_l2 for row in accuracy])
    last = len(accuracy) - 1
    final = headline.final_accuracy(report)
    throughput = report.throughput
    points = front.points_of(report)
    return {
        "report": report,
        "mark": MARKS[report.verdict],
        "sentence": headline.sentence(report),
        "reason": wording.one_line(headline.reason(report)),
        "heads": headline.headlines(report),
        "accuracy": [
            (row, charts.bar(step, is_last=index == last > 0))
            for index, (row, step) in enumerate(zip(accuracy, steps, strict=True))
        ],
        "metric_names": list(dict.fromkeys(name for row in accuracy for name, _ in row.metrics)),
        "final": final,
        "flips": _flips(report),
        "flip_sentence": headline.flips(final) if final else "",
        "metered": rows.metered(report),
        "energy_sources": rows.energy_sources(report),
        "front": points,
        "pareto": pareto.plot(points, report.sweep.label if report.sweep else "optimized"),
        "pareto_heads": pareto.HEADS,
        "pareto_rows": [pareto.cells(point) for point in points],
        "shapes": ", ".join(
            f"{wording.one_line(name)} {' × '.join(map(str, shape))}"
            for name, shape in (throughput.shapes if throughput else {}).items()
        ),
        "floor_ratio": _floor_ratio(report),
        "strips": charts.latency_strips(throughput.contenders if throughput else ()),
        "rewrites": rows.rewrites,
        "busy": [record for record in report.passes if not rows.is_idle(record)],
        "idle": [record for record in report.passes if rows.is_idle(record)],
        "shares": rows.format_shares(report.layers),
        "map": rows.layer_map(report.layers),
        "ops": rows.op_rows(report),
        "weights": rows.weight_rows(report),
        "environment": environment_facts(report.environment),
        "recipe": recipe_text(report.recipe),
    }


def _floor_ratio(report: Report) -> float | None:
    timed = headline.contender(report, "optimized")
    if report.roofline is None or timed is None or report.roofline.floor_ms <= 0:
        return None
    return timed.p50_ms / report.roofline.floor_ms


def _against(gate: GateResult) -> tuple[str, str]:
    return wording.against(gate.value, gate.limit, gate.unit)


def _flips(report: Report) -> list[str]:
    final = headline.final_accuracy(report)
    if final is None:
        return []
    return [
        f"sample {flip.sample}: {flip.reference} → {flip.candidate}"
        + (f" (label {flip.label})" if flip.label is not None else "")
        for flip in final.flips
    ]


def environment_facts(environment: Environment) -> Mapping[str, str]:
    """Where the run happened, as name and text."""
    facts = {
        "Processor": f"{environment.processor}, {wording.count(environment.cores, 'core')}",
        "Memory": wording.size(environment.memory_bytes),
        "Devices": ", ".join(environment.devices) or "no accelerator",
        "System": f"{environment.platform}, Python {environment.python}",
        "Libraries": ", ".join(f"{name} {version}" for name, version in environment.libraries.items()),
    }
    if environment.instructions:
        facts["Instructions"] = ", ".join(environment.instructions)
    return facts


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(dict(recipe), text)
    return text.getvalue()
