"""A case's facts as Markdown: its contenders, fastest first, and what was to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OVER_FP32 = (2.0, 6.0)
"""How many times faster than FP32 eager ours is to be: at least the first, and up to the second is hoped for."""

COMPILED = "torch.compile FP16 (reduce-overhead)"
TORCH_ERRORS = 2.0
"""How many times torch.compile's own error ours may have at least."""

HEAD = (
    "| contender | median ms | middle half | over torch.compile | over FP32 eager | relative error |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def table(facts: Mapping[str, Any]) -> str:
    """Title, table and goals of one case.

    Args:
        facts: A value of "cases" in benchmark.json; times in milliseconds, "over_compile" is a contender's median
            over torch.compile's, "speedup_over_fp32_eager" is FP32 eager's median over the contender's.
    """
    rows = sorted(facts["contenders"].items(), key=lambda item: item[1].get("median_ms", float("inf")))
    lines = [_row(name, row) for name, row in rows]
    reached = [f"- {goal}: {said}." for goal, said in goals(facts)]
    return "\n".join([f"### {facts['title']}", "", HEAD, *lines, "", *reached])


def error_limit(facts: Mapping[str, Any]) -> float:
    """Relative error up to which a variant of ours counts.

    The case's own limit, or twice what torch's FP16 is off by in the same run where that is more: no FP16 contender
    keeps to a limit that lies below what the format itself costs a network.
    """
    own = facts["contenders"].get(COMPILED, {}).get("relative_error", 0.0)
    return max(float(facts["error_limit"]), TORCH_ERRORS * float(own))


def best(facts: Mapping[str, Any]) -> str | None:
    """The fastest variant of ours within the error limit."""
    limit = error_limit(facts)
    rows = {
        name: row for name, row in facts["contenders"].items() if "median_ms" in row and name.startswith("ours")
    }
    within = [name for name, row in rows.items() if row["relative_error"] <= limit]
    return min(within, key=lambda name: rows[name]["median_ms"], default=None)


def goals(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each goal of a case, and whether it is reached and by what.

    Only variants of ours within the error limit count; without one the fastest of ours is told, and all are missed.
    """
    contenders, limit = facts["contenders"], error_limit(facts)
    counts = best(facts)
    ours = [name for name, row in contenders.items() if name.startswith("ours") and "median_ms" in row]
    shown = counts or min(ours, key=lambda name: contenders[name]["median_ms"], default=None)
    over_compile = facts["goal_over_compile"]
    first = f"≤ {over_compile} × torch.compile at relative error ≤ {limit:.2g}"
    second = f"{OVER_FP32[0]:.0f} to {OVER_FP32[1]:.0f} × over FP32 eager at relative error ≤ {limit:.2g}"
    if shown is None:
        asked = (first, second) if over_compile is not None else (second,)
        return [(goal, f"{_verdict(False)} (no variant of ours ran)") for goal in asked]
    row = contenders[shown]
    ratio, speedup = row["over_compile"], row["speedup_over_fp32_eager"]
    error = f"relative error {row['relative_error']:.2g}"
    beside = f", {error}" if counts else f", {error}: none of ours is within the limit"
    over = counts is not None and speedup >= OVER_FP32[0]
    told = [(second, f"{_verdict(over)} ({shown}: {speedup:.2f}×{beside})")]
    if over_compile is not None:
        fast = counts is not None and ratio <= over_compile
        told.insert(0, (first, f"{_verdict(fast)} ({shown}: {ratio:.2f}{beside})"))
    return told


def _row(name: str, row: Mapping[str, Any]) -> str:
    if "median_ms" not in row:
        return f"| {name} | failed: {row.get('failed', 'not run')} | | | | |"
    error = "not measured" if row["relative_error"] is None else f"{row['relative_error']:.2g}"
    return (
        f"| {name} | {row['median_ms']:.3f} | {row['p25_ms']:.3f} to {row['p75_ms']:.3f} | "
        f"{row['over_compile']:.2f} | {row['speedup_over_fp32_eager']:.2f}× | {error} |"
    )


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"
