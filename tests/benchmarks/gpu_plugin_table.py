"""The trial of the 8-bit kernels as Markdown: whole decode chains, then the kernels by shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAINS = (
    "| decode chain, d 4096, 8 layers | rows | median ms | middle half | over torch.compile | relative error |\n"
    "| --- | --- | --- | --- | --- | --- |"
)
KERNELS = "| kernel | rows | N × K | µs | TB/s |\n| --- | --- | --- | --- | --- |"
SHAPES = {"up": "14336 × 4096", "down": "4096 × 14336"}


def plugin_table(facts: Mapping[str, Any]) -> str:
    """Both tables.

    Args:
        facts: "plan-ROWS" holds contenders by name, times in milliseconds; "raw-ROWS" every way to cut a kernel,
            "us" and "gb_s" per shape, and the best one per shape.
    """
    chains, kernels = [], []
    for rows in (1, 16):
        contenders = {name: row for name, row in facts[f"plan-{rows}"].items() if "median_ms" in row}
        for name, row in sorted(contenders.items(), key=lambda item: item[1]["median_ms"]):
            chains.append(
                f"| {name} | {rows} | {row['median_ms']:.3f} | {row['p25_ms']:.3f} to {row['p75_ms']:.3f} | "
                f"{row['over_compile']:.2f} | {row['relative_error']:.2g} |"
            )
        raw = facts[f"raw-{rows}"]
        for shape, name in raw["best"].items():
            found = raw["configs"][name][shape]
            kernels.append(f"| {name} | {rows} | {SHAPES[shape]} | {found['us']:.1f} | {found['gb_s'] / 1e3:.2f} |")
    return "\n".join([CHAINS, *chains, "", KERNELS, *kernels, ""])
