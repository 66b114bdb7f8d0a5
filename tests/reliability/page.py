"""Writes `docs/reliability.md` from the figures in `docs/reliability/`: `python -m tests.reliability.page`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path("docs/reliability")
PAGE = Path("docs/reliability.md")

INTRODUCTION = """# Reliability

What was tried, and what came out. Every figure comes from a file in `docs/reliability/`, which the command
beside it writes; `python -m tests.reliability.page` makes this page from them. Smaller, seeded runs are part of
the test suite.
"""

SECTIONS = (
    (
        "crash",
        "Killed at random moments",
        "python -m tests.reliability.crash --kills 100",
        "A run is killed (SIGKILL) at a random moment, again and again, then left to finish. Its model, engine and "
        "resolved recipe must be the same bytes as an undisturbed run's, with no temporary file, held lock or "
        "process left.",
    ),
    (
        "fuzz",
        "Broken and hostile files",
        "python -m tests.reliability.fuzz --cases 100000",
        "Each case is a damaged recipe, ONNX file, data file, report or safetensors file. It is taken, or refused "
        "in a sentence with exit code 2 or 4, within ten seconds and two gigabytes.",
    ),
    (
        "guided",
        "Inputs guided by coverage",
        "python -m tests.reliability.fuzz --guided 180",
        "The same readers and the same judge; atheris makes the inputs, led by the branches they reach in this "
        "project and in the parsers written in Python.",
    ),
    (
        "scale",
        "Large models",
        "python -m tests.reliability.scale",
        "A generated FP16 decoder goes through check, cleanup, fusion and weight-only quantization. Memory is the "
        "peak of the step's anonymous memory; beside each figure, what the estimate said before the run.",
    ),
    (
        "nodes",
        "Many nodes",
        "python -m tests.reliability.nodes",
        "Graphs of small layers are read, cleaned and fused; processor time per thousand nodes must not grow.",
    ),
    (
        "determinism",
        "Same recipe, same bytes",
        "python -m tests.reliability.determinism recipes/digits-int8-cpu.yaml recipes/minilm-int8-cpu.yaml",
        "Recipes run with one thread and with two, with other hash seeds, in other folders, nothing shared; and "
        "once more on another machine (`--digests FILE` on each, then `--ours FILE --against FILE`). "
        "`engine.json` names the version of ONNX Runtime that built the engine.",
    ),
    (
        "soak",
        "Full load",
        "python -m tests.reliability.soak out/minilm-int8-cpu --minutes 60",
        "Two loads at once on the MiniLM example's engine: a real Triton Inference Server answers clients that "
        "send batches of changing size, every answer compared with the engine's own, and `optimize bench` times "
        "it. Other work shared the machine, so latencies say nothing of the engine's speed.",
    ),
)


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for name, title, command, what in SECTIONS:
        path = FOLDER / f"{name}.json"
        parts.append(f"## {title}\n\n`{command}`\n\n{what}\n")
        parts.append(table(json.loads(path.read_text())) if path.exists() else "Not run yet.\n")
    return "\n".join(parts)


def table(facts: Any) -> str:
    """Facts as a Markdown table: one row per item of a list, or per key of a mapping."""
    if isinstance(facts, list):
        heads = list(dict.fromkeys(key for item in facts for key in item))
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(text(item.get(head)) for head in heads) + " |" for item in facts]
    else:
        lines = ["| figure | value |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {text(value)} |" for key, value in facts.items()]
    return "\n".join(lines) + "\n"


def text(value: Any) -> str:
    """One cell."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
