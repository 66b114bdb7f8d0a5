"""Write the tables of docs/gpu.md from the figures under docs/gpu/.

    python -m tests.benchmarks.gpu_page [--add results/benchmark.json --date 2026-11-24]

With --add a run's figures are first put there, named by date and cases, without that machine's paths. A file of the
8-bit kernels' trial (`…-int8-plugin.json`, chosen kernels and whole chains) has a table of its own; a sweep
(`…-dense-sweep.json`, by `tests/benchmarks/gpu/dense_sweep.py`) has none, nor have products in 8 bits
(`…-eight-bits.json`, by `eight_bits.py` beside it) and scales (`…-scales.json`, by `scales.py` there).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.table import goals, table
from tests.benchmarks.gpu_plugin_table import plugin_table

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES = DOCS / "gpu.md", DOCS / "gpu"
FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.-]+/)+")
"""The folders of an absolute path, which say where one machine kept a file."""


def add(result: Path, date: str) -> Path:
    """Copy a run's benchmark.json to docs/gpu/; what was measured stays as it is.

    Args:
        result: As `tests/benchmarks/gpu/run.py` wrote it.
        date: Of the run, "2026-11-24".

    Returns:
        The file written.
    """
    facts = json.loads(result.read_text(encoding="utf-8"))
    for case in facts["cases"].values():
        for row in case["contenders"].values():
            row.pop("plan", None)
            if "failed" in row:
                row["failed"] = FOLDERS.sub("", row["failed"])
    FIGURES.mkdir(exist_ok=True)
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    path = named = FIGURES / f"{date}-{'-'.join(facts['cases'])}.json"
    count = 1
    while path.exists() and path.read_text(encoding="utf-8") != text:  # A run that was kept stays.
        count += 1
        path = named.with_stem(f"{named.stem}-{count}")
    path.write_text(text, encoding="utf-8")
    return path


def tables() -> str:
    """All runs, in the order of their files' names."""
    return "\n".join(_run(path) for path in runs())


def verdicts() -> str:
    """Every case's goals; a case measured twice stands as its last file has it."""
    found = {name: case for path in runs() for name, case in _read(path)["cases"].items()}
    rows = [f"| {case['title']} | {goal} | {said} |" for case in found.values() for goal, said in goals(case)]
    return "\n".join(["| case | goal | |", "| --- | --- | --- |", *rows, ""])


def plugins() -> str:
    """The trials of the 8-bit kernels."""
    return "\n".join(f"{plugin_table(_read(path))}\n[figures](gpu/{path.name})\n" for path in trials())


def page() -> str:
    """The page with its tables renewed; everything outside the marks as it is."""
    text = PAGE.read_text(encoding="utf-8")
    for mark, body in (("goals", verdicts()), ("plugin", plugins()), ("tables", tables())):
        head, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, tail = rest.partition(f"<!-- /{mark} -->")
        if not (begin and end):
            raise ValueError(
                f"{PAGE.name} has no place for {mark}: put <!-- {mark} --> and <!-- /{mark} --> there."
            )
        text = f"{head}{begin}\n{body}\n{end}{tail}"
    return text


def runs() -> list[Path]:
    """The benchmark's files."""
    kinds = ("dense-sweep", "eight-bits", "scales")
    others = {*trials(), *(path for kind in kinds for path in FIGURES.glob(f"*-{kind}.json"))}
    return [path for path in sorted(FIGURES.glob("*.json"), key=lambda path: path.stem) if path not in others]


def trials() -> list[Path]:
    """The files of the 8-bit kernels' trials."""
    return sorted(FIGURES.glob("*-int8-plugin.json"))


def _read(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _run(path: Path) -> str:
    facts = _read(path)
    made = facts["environment"]
    device = made["device"]
    head = (
        f"## {path.stem}\n\n{device['name']}, compute capability {device['compute_capability']}, CUDA "
        f"{device['driver']}, torch {made['torch']}, {made['tensorrt']}, {facts['rounds']} rounds: "
        f"[figures](gpu/{path.name}).\n"
    )
    return "\n".join([head, *(f"{table(case)}\n" for case in facts["cases"].values())])


def main() -> None:
    """Parse the command line, add the run if there is one, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path)
    parser.add_argument("--date")
    options = parser.parse_args()
    if options.add:
        if not options.date:
            parser.error("--add needs --date, the day of the run")
        add(options.add, options.date)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
