"""docs/int8-latency.md from the files that `tests.benchmarks.int8_latency --time` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.fusion_where import GROUPS, PRODUCTS
from tests.benchmarks.processor import LABELS
from tests.benchmarks.quantization_cells import TRIED
from tests.benchmarks.quantization_table import BASELINE

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES = DOCS / "int8-latency.md", DOCS / "int8-latency"
GOAL = 0.6
"""Of the baseline's time."""

HEAD = """\
# INT8 latency by processor

Written by `python -m tests.benchmarks.int8_latency --page` from the files linked below; not edited by hand.

MiniLM-L6 in INT8, 8 × 128 tokens. *Of baseline*: the median, over rounds in which all models take turns, of a
model's time by that of ONNX Runtime's dynamic quantization per channel; the figure is the median over the
repeats, in brackets the least and the greatest repeat. Wall time on two threads, processor time on one. The
goal is 0.6. *Ours* is made from the cleaned and fused model, [with its accuracy in the quantization
table](quantization-table.md).

To add a processor, the second command on that machine (numpy, onnxruntime and this tree suffice, the folder can be
carried there):

```text
python -m tests.benchmarks.int8_latency --make FOLDER
python -m tests.benchmarks.int8_latency --time FOLDER --out docs/int8-latency/DATE-PROCESSOR.json
python -m tests.benchmarks.int8_latency --page
```

The same models are timed on every processor, with weights in 8 bits. On one without VNNI plain ONNX Runtime sums
their products in saturating 16 bits, fast and wrong, and that is the baseline; ours are timed as the product runs
them, with exact products. The file named *seven-bits* has ours with weights within ±64 instead, which need no other
kernel, as `weight_bits: auto` makes them there.

## What decides it
"""

WHY = """\
Dynamic models make the same 36 products by the same operators, ours and ONNX Runtime's; what fusion takes away
is around them. So the smaller the products' part of the baseline's time, the lower the ratio can be, and that
part depends on the instructions that the processor has for 8 bits. In the table, *products* and *the rest*
(attention with it) are parts of the baseline's time by the profiler, which has one model open at a time, one
after another: where the processor's speed changes between two of them, these columns show that too. *Of
baseline* is by the wall clock, in turns.

Attention computes in FP32. Two models with the same weights have it in 8 bits (`tests/benchmarks/
integer_attention.py`): by ONNX Runtime's QAttention, which takes in the projections and has its scores in FP32,
and with both products as integers, whose operands need ranges, quantizers and transposes of their own. Neither is
faster, so no pass writes them. QAttention's *the rest* holds its projections.
"""


def page() -> str:
    """The whole page.

    Raises:
        FileNotFoundError: When there are no figures.
    """
    runs = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FIGURES.glob("*.json"))}
    if not runs:
        raise FileNotFoundError(f"no figures in {FIGURES.name}/: write some with --time FOLDER --out FILE.json")
    parts = [HEAD, decision(runs), *(section(file, facts) for file, facts in runs.items())]
    return "\n".join(parts)


def decision(runs: Mapping[str, dict[str, Any]]) -> str:
    """A row for each processor and model, and for each processor in a sentence why the goal is reached or not.

    Args:
        runs: By file name, as sorted.
    """
    lines = [WHY.rstrip(), "", "| processor | model | products | the rest | of baseline | ≤ 0.6? |"]
    lines.append("|---|---|---:|---:|---:|---|")
    said = []
    for file, facts in runs.items():
        parts = profile(facts)
        where = f"[{label(facts)}](int8-latency/{file})"
        whole = sum(parts[BASELINE].values())
        ours = [cell for cell in cells(facts) if cell != BASELINE]
        lines.append(f"| {where} | {name(BASELINE)} | {_shares(parts[BASELINE], whole)} | 1.00 | |")
        for cell in ours:
            row = f"| {where} | {name(cell)} | {_shares(parts[cell], whole)} | {ratio(facts, cell, 'wall_ms')} "
            lines.append(f"{row}| {reached(facts, cell)} |")
        best = min(
            (cell for cell in ours if cell not in TRIED),
            key=lambda cell: np.median(values(facts, cell, "wall_ms_ratio")),
        )
        products = parts[best][PRODUCTS] / whole
        rest = sum(parts[best].values()) / whole - products
        said.append(
            f"- **{label(facts)}**, *{name(best)}*: by the profiler its products alone take {products:.2f}, which "
            f"would leave {GOAL - products:.2f} for all else, and that takes {rest:.2f}. By the clock "
            f"{ratio(facts, best, 'wall_ms')}: {reached(facts, best)}."
        )
    return "\n".join([*lines, "", *said, ""])


def section(file: str, facts: dict[str, Any]) -> str:
    """One processor's tables: time of each model, and where it goes."""
    lines = [f"## {Path(file).stem}", "", f"{described(facts)} [Figures](int8-latency/{file}).", ""]
    if "note" in facts:
        lines += [facts["note"], ""]
    lines.append("| model | ms, 2 threads | of baseline | ms CPU, 1 thread | of baseline |")
    lines.append("|---|---:|---:|---:|---:|")
    for cell in cells(facts):
        shown = (f"{milliseconds(facts, cell, key)} | {ratio(facts, cell, key)}" for key in ("wall_ms", "cpu_ms"))
        lines.append(f"| {name(cell)} | {' | '.join(shown)} |")
    lines += ["", f"| model, ms by the profiler | {' | '.join(GROUPS)} | all |"]
    lines.append("|---|" + "---:|" * (len(GROUPS) + 1))
    for cell, parts in profile(facts).items():
        shown = (f"{parts[group]:.1f}" for group in GROUPS)
        lines.append(f"| {name(cell)} | {' | '.join(shown)} | {sum(parts.values()):.1f} |")
    return "\n".join([*lines, ""])


def cells(facts: dict[str, Any]) -> list[str]:
    """The models of a file, as timed."""
    return list(facts["runs"][0])


def name(cell: str) -> str:
    """A cell within a table."""
    return cell.replace(" | ", ", ")


def values(facts: dict[str, Any], cell: str, key: str) -> list[float]:
    """One figure of a model, by repeat."""
    return [run[cell][key] for run in facts["runs"]]


def milliseconds(facts: dict[str, Any], cell: str, key: str) -> str:
    """Median over the repeats with their range."""
    return _ranged(values(facts, cell, key), ".0f")


def ratio(facts: dict[str, Any], cell: str, key: str) -> str:
    """To the baseline: median over the repeats with their range."""
    return "1.00" if cell == BASELINE else _ranged(values(facts, cell, f"{key}_ratio"), ".2f")


def reached(facts: dict[str, Any], cell: str) -> str:
    """Whether the goal is, by either clock, in every repeat, some or none."""
    said = []
    for key, clock in (("wall_ms_ratio", "wall"), ("cpu_ms_ratio", "CPU")):
        found = values(facts, cell, key)
        count = sum(value <= GOAL for value in found)
        said.append(
            f"{clock} {'yes' if count == len(found) else f'in {count} of {len(found)} repeats' if count else 'no'}"
        )
    return ", ".join(said)


def profile(facts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds by model and kind of operator, medians over the repeats."""
    taken = facts["profile"]
    return {
        cell: {group: float(np.median([one[cell][group] for one in taken])) for group in GROUPS}
        for cell in cells(facts)
    }


def label(facts: dict[str, Any]) -> str:
    """The fastest instruction set that the processor has for 8-bit products."""
    found = facts["processor"]["instruction_sets"]
    return next((LABELS[key] for key in LABELS if key in found), "no 8-bit instructions")


def described(facts: dict[str, Any]) -> str:
    """The processor and how it was timed, in a sentence."""
    has = facts["processor"]
    known = [f"{key} {has[key]}" for key in ("family", "model") if has[key] is not None]
    words = [word for word in (has["vendor"], *known, *has["instruction_sets"]) if word]
    cores = len(facts["pinned_to"] or ())
    pinned = f"{cores} of {has['cpus']} CPUs" if cores else f"{has['cpus']} CPUs, not pinned"
    versions = f"ONNX Runtime {facts['onnxruntime']}" + (f", numpy {facts['numpy']}" if facts["numpy"] else "")
    repeats = f"{len(facts['runs'])} × {facts['rounds']} rounds"
    return f"{has['machine']}: {', '.join(words)}; {pinned}; {versions}; {repeats}."


def _ranged(found: list[float], form: str) -> str:
    middle = format(float(np.median(found)), form)
    return f"{middle} ({min(found):{form}}–{max(found):{form}})" if len(found) > 1 else middle


def _shares(parts: dict[str, float], whole: float) -> str:
    products = parts[PRODUCTS] / whole
    return f"{products:.2f} | {sum(parts.values()) / whole - products:.2f}"
