"""The quantization table's section on where the time of INT8 goes, from ONNX Runtime's own profiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import fusion_where


def section(
    paths: Mapping[str, Path],
    baseline: str,
    feeds: dict[str, np.ndarray[Any, Any]],
    config: Callable[[str], Mapping[str, str]],
) -> str:
    """Milliseconds by kind of operator on two threads, and what no change around the products can go below.

    Args:
        paths: Models by the name shown; `baseline` is one of them.
        baseline: What ratios are to.
        feeds: One batch.
        config: Session configuration entries for a model, by its name.
    """
    found = {name: fusion_where.of_graph(path, feeds, 2, config(name)) for name, path in paths.items()}
    whole = sum(found[baseline].values())
    text = "\n## Where the INT8 time goes\n\n"
    text += "Milliseconds on two threads, one model open at a time, by the profiler.\n\n"
    text += f"| model | {' | '.join(fusion_where.GROUPS)} | all | of baseline | products alone, of baseline |\n"
    text += "|---|" + "---:|" * (len(fusion_where.GROUPS) + 3) + "\n"
    for name, parts in found.items():
        total, products = sum(parts.values()), parts[fusion_where.PRODUCTS]
        shown = " | ".join(f"{parts[group]:.1f}" for group in fusion_where.GROUPS)
        label = name.replace(" | ", ", ")
        text += f"| {label} | {shown} | {total:.1f} | {total / whole:.2f} | {products / whole:.2f} |\n"
    return text
