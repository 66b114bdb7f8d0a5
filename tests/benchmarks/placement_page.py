"""docs/placement.md from the files that `tests.benchmarks.placement --out` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.processor import LABELS

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES = DOCS / "placement.md", DOCS / "placement"

HEAD = """\
# Where quantizers stand: what each rule costs and gains

Written by `python -m tests.benchmarks.placement --page` from the files linked below; not edited by hand.

Convolutional networks with random weights (`tests/benchmarks/convolution_nets.py`), quantized by the target's rules
and with one rule turned round at a time. All models of a network are open at once and run in turns; *of floating
point* is the median over the rounds of a model's time by that of the model without quantizers, cleaned and fused
alike. *Error*: relative, of the result, on one random input; *not finite* where it has infinities. ONNX Runtime's
tool: `quantize_static` with weights per channel, on the same data, opened as ours. What the rules are:
[where quantizers stand](tensorrt.md#where-quantizers-stand); their sources stand in `optimize/targets/`.

On the H200 *the target's rules* are those named above each table. Today's have one scale for products and one per
channel for convolutions; the runs before, by an earlier form of the benchmark, were made to find them. TensorRT for
RTX emulates FP8 on that GPU: slower than FP16 whatever the placement. *Not finite*, and errors above 1, are what
its kernels make of FP16 layers with [the wrong scales](tensorrt.md#scales-in-fp16).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_file(path) for path in sorted(FIGURES.glob("*.json")))])


def write() -> None:
    """Renew the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _file(path: Path) -> str:
    facts = json.loads(path.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"## {facts['form'].upper()}, {_device(facts['device'])}, {facts['date']}",
        "",
        f"Batch {facts['batch']}, {facts['rounds']} rounds; {versions}; [figures](placement/{path.name}).",
        *([f"Rules: {_rules(facts['rules'])}."] if "rules" in facts else []),
        "",
        "| network | quantizers | ms | of floating point | error | MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, rows in facts["nets"].items():
        lines += [f"| {name} | {what} | {_figures(row)} |" for what, row in rows.items()]
    return "\n".join([*lines, ""])


def _figures(row: Mapping[str, Any]) -> str:
    digits = 3 if row["ms"] < 10 else 1
    megabytes = row["bytes"] / 1e6
    error = "not finite" if row["error"] is None else f"{row['error']:.4f}"
    return f"{row['ms']:.{digits}f} | {row['ratio']:.2f} | {error} | {megabytes:.1f}"


def _rules(rules: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {_words(said)}" for name, said in rules.items())


def _words(said: Any) -> str:
    if isinstance(said, bool):
        return "yes" if said else "no"
    return (", ".join(said) if isinstance(said, list) else str(said)) or "none"


def _device(device: Any) -> str:
    if isinstance(device, str):
        return device
    best = next((LABELS[name] for name in device["instruction_sets"] if name in LABELS), device["machine"])
    return f"{device['cpus']} CPUs with {best}"
