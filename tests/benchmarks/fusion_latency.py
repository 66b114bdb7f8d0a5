"""Write docs/fusion-latency.md: python -m tests.benchmarks.fusion_latency [--cache FOLDER] [--prepare]

FP32 latency on this machine of MiniLM (8 x 128 tokens) and of every architecture of the zoo at a size where kernels
count, in seven ways: torch eager, torch.compile, ONNX Runtime at its highest level on the export as it is, ONNX
Runtime's transformer optimizer, OnnxSlim, onnxscript's optimize_for_ort, and ours. `--prepare` exports, fuses and
compiles only, so that a later run on a quiet machine does nothing but measure.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.benchmarks import fusion_where as where
from tests.benchmarks.fusion_contenders import OURS, PLAIN, THREADS, Field, contenders
from tests.benchmarks.fusion_models import BATCH, MODELS, TOKENS
from tests.benchmarks.fusion_turns import Turn, cell, measure, section

PAGE = Path(__file__).parents[2] / "docs" / "fusion-latency.md"
GOAL = 0.7


def rows(field: Field, samples: Mapping[str, np.ndarray]) -> tuple[list[str], dict[str, float]]:
    """(the table of one model, ratios to plain ONNX Runtime by contender)."""
    ratios = {key: float(np.median(values / samples[PLAIN])) for key, values in samples.items()}
    lines = ["| contender | ms median (fastest) | of plain ONNX Runtime |", "|---|---|---|"]
    lines += [f"| {key} | {cell(values)} | {ratios[key]:.3f} |" for key, values in samples.items()]
    lines += [f"| {key} | {reason} | |" for key, reason in field.reasons.items()]
    return lines, ratios


def places(field: Field, best: str) -> tuple[list[str], dict[str, dict[str, float]]]:
    """(the table of where the time goes, milliseconds by contender and group)."""
    watched = list(dict.fromkeys((PLAIN, OURS, "torch.compile", best)))
    found = {key: where.of_graph(field.graphs[key], field.feeds, THREADS) for key in watched if key in field.graphs}
    found |= {key: where.of_torch(field.modules[key]) for key in watched if key in field.modules}
    lines = [f"| ms in | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for group in where.GROUPS:
        lines.append(f"| {group} | {' | '.join(f'{times[group]:.1f}' for times in found.values())} |")
    return lines, found


def between(numbers: np.ndarray) -> tuple[float, float]:
    """An interval that holds the median of what `numbers` were drawn from, at 95 %: a sign test turned round."""
    ordered, count = np.sort(numbers), len(numbers)
    outside, skipped = 2.0 * 0.5**count, 0
    while skipped < count // 2 - 1 and outside + 2.0 * math.comb(count, skipped + 1) * 0.5**count <= 0.05:
        skipped += 1
        outside += 2.0 * math.comb(count, skipped) * 0.5**count
    return float(ordered[skipped]), float(ordered[-1 - skipped])


def verdict(
    ratios: Mapping[str, float], times: Mapping[str, Mapping[str, float]], samples: Mapping[str, np.ndarray]
) -> list[str]:
    """Whether ours is the fastest, else why not; and how far fusion could go."""
    best = min(ratios, key=lambda key: ratios[key])
    products = times[OURS][where.PRODUCTS] / sum(times[OURS].values())
    low, high = between(samples[OURS] / samples[best])
    lines = []
    if best == OURS:
        lines.append("Ours is the fastest.")
    elif low <= 1.0 <= high:
        lines.append(
            f"Ours and {best} are equally fast: ours takes {low:.3f} to {high:.3f} of its time (95 % interval of"
            " the median over rounds)."
        )
    else:
        lost = {group: times[OURS][group] - times[best][group] for group in where.GROUPS}
        most = max(lost, key=lambda group: lost[group])
        lines.append(
            f"The fastest is {best}, not ours: it spends {times[best][most]:.1f} ms in {most}, ours"
            f" {times[OURS][most]:.1f}."
        )
    floor = ratios[OURS] * products
    lines.append(
        f"Of ours {products:.0%} are matrix products and convolutions with weights, which no fusion makes cheaper:"
        f" with everything else for nothing the ratio would be {floor:.3f}"
        + (f", so {GOAL} is out of fusion's reach." if floor > GOAL else ".")
    )
    return lines


def page(options: argparse.Namespace, cache: Path) -> None:
    """Measure and write."""
    turn = Turn()
    started = time.monotonic()
    head = [
        "# FP32 latency against other optimizers",
        "",
        textwrap.fill(
            "Written by `python -m tests.benchmarks.fusion_latency`; not edited by hand. Contenders take turns,"
            f" {options.rounds} rounds of them. A turn pauses for {turn.pause_s * 1000:.0f} ms, makes"
            f" {turn.discarded} call that does not count, then {turn.timed} that do, whose median is the"
            f" sample. {THREADS} threads; text models run {BATCH} x {TOKENS} tokens. Milliseconds are the median"
            " and (fastest) of the samples; ratios are medians of the ratio to plain ONNX Runtime within a round,"
            " which cancels a busy machine. A contender counts when its output is torch eager's. Below each"
            " table: what ONNX Runtime's and torch's profilers say the time went into. The load average was"
            f" {os.getloadavg()[0]:.1f} at the start.",
            width=112,
        ),
        "",
    ]
    summary = ["| model | ours, of plain ONNX Runtime | fastest |", "|---|---|---|"]
    details: list[str] = []
    turns: list[str] = []
    for name in options.only:
        field = contenders(name, cache, options.without)
        if options.prepare:
            print(f"{name}: {', '.join(field.runs)} are ready; {field.reasons or 'none failed'}", flush=True)
            continue
        samples = measure(field.runs, options.rounds, turn)
        table, ratios = rows(field, samples)
        best = min(ratios, key=lambda key: ratios[key])
        split, times = places(field, best)
        words = verdict(ratios, times, samples)
        summary.append(f"| [{name}](#{name}) | {ratios[OURS]:.3f} | {best} ({ratios[best]:.3f}) |")
        details += [f"## {name}", "", *table, "", *split, "", *words, ""]
        print("\n".join(details[-16:]), f"\n{time.monotonic() - started:.0f} s so far", flush=True)
        if name == options.turns:
            turns = section(name, field.runs, (PLAIN, OURS, "torch.compile"), options.rounds)
        PAGE.write_text("\n".join([*head, *summary, "", *turns, *details]))


def main() -> None:
    """Read the options; without `--cache` the models live in a folder that goes away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--without", nargs="*", default=[], help="contenders left out, such as torch.compile")
    parser.add_argument("--turns", default="bert", help="the model on which a turn's parts are compared")
    parser.add_argument("--cache", type=Path, help="folder that keeps exported and rewritten models between runs")
    parser.add_argument("--prepare", action="store_true", help="make everything ready in --cache, measure nothing")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        page(options, cache)


if __name__ == "__main__":
    main()
