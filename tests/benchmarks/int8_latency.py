"""Times INT8 MiniLM on a processor, ours against ONNX Runtime's dynamic quantization per channel, in turns.

    python -m tests.benchmarks.int8_latency --make FOLDER
    python -m tests.benchmarks.int8_latency --time FOLDER --out docs/int8-latency/DATE-PROCESSOR.json
    python -m tests.benchmarks.int8_latency --time FOLDER --without-amx --out docs/int8-latency/DATE-PROCESSOR.json
    python -m tests.benchmarks.int8_latency --page

`--time` needs no more than numpy, onnxruntime and this tree, so the folder can be carried to another machine. It
times every model of the quantization table that lies there, pinned to two cores where the system can: wall time on
two threads, processor time on one. `--without-amx` has the system refuse AMX to the process, so that a processor
with AMX runs what one without it would: AVX-512 VNNI. `--page` writes docs/int8-latency.md from the files in
docs/int8-latency/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.benchmarks import fusion_where, int8_latency_page, processor
from tests.benchmarks import quantization_table as table
from tests.benchmarks.quantization_cells import CELLS, TRIED, file_name

CORES = 2


def make(folder: Path) -> None:
    """Export MiniLM to `folder` and make the models whose profile the quantization table shows too.

    Raises:
        RuntimeError: When one cannot be made, with the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table.prepare(folder, sentences=8)
    for cell in table.PROFILED:
        record = table.make(cell, folder, sys.executable)
        if "failed" in record:
            raise RuntimeError(f"{cell}: {record['failed']}")
    from tests.benchmarks import integer_attention  # needs more than timing does

    integer_attention.make(folder)


def found(folder: Path) -> list[str]:
    """The cells whose model lies in `folder`, the baseline first.

    Raises:
        FileNotFoundError: When the baseline is not there, or nothing to compare with it.
    """
    cells = [cell for cell in (*CELLS, *TRIED) if (folder / file_name(cell)).exists() and cell != table.BASELINE]
    if not cells or not (folder / file_name(table.BASELINE)).exists():
        raise FileNotFoundError(
            f"{folder}: needs {file_name(table.BASELINE)} and another model; make them with --make {folder}"
        )
    return [table.BASELINE, *cells]


def measure(folder: Path, out: Path, rounds: int, repeats: int, *, without_amx: bool = False) -> dict[str, Any]:
    """Time the models of `folder`, `repeats` times, then profile them as often; writes `out` after each repeat.

    Args:
        folder: Where they lie.
        out: JSON file.
        rounds: Turns of every model in a repeat.
        repeats: How often sessions are made anew.
        without_amx: Time them as on a processor that has no AMX.

    Returns:
        What was written: `runs` has per repeat and cell the median, quartiles and samples in milliseconds of
        `wall_ms` and `cpu_ms` and the median ratio to the baseline; `profile` per repeat, cell and kind of operator
        milliseconds on two threads.
    """
    cells = found(folder)
    if without_amx:
        processor.refuse_amx()
    facts: dict[str, Any] = {
        "date": str(datetime.datetime.now(tz=datetime.UTC).date()),
        "processor": processor.describe(without=("amx_int8",) if without_amx else ()),
        "pinned_to": processor.pin(CORES),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "batch": "8 x 128 tokens",
        "rounds": rounds,
        "runs": [],
        "profile": [],
    }
    if without_amx and "amx_int8" in processor.instruction_sets():
        facts["note"] = "The processor has AMX, which the system refused to this process (`--without-amx`)."
    onnxruntime.set_default_logger_severity(4)
    for repeat in range(repeats):
        made: dict[str, dict[str, Any]] = {cell: {} for cell in cells}
        for key, samples in table.turns(folder, cells, rounds).items():
            for cell, values in samples.items():
                made[cell] |= summary(key, values, samples[table.BASELINE])
        facts["runs"].append(made)
        facts["load"] = os.getloadavg()
        _write(out, facts)
        ratios = ", ".join(f"{row['wall_ms_ratio']:.3f} ({row['cpu_ms_ratio']:.3f})" for row in made.values())
        print(f"repeat {repeat + 1}: wall (CPU) of baseline {ratios}", flush=True)
    feeds = table.timed_batch()
    for repeat in range(repeats):
        turned = cells[repeat % len(cells) :] + cells[: repeat % len(cells)]
        parts = {
            cell: fusion_where.of_graph(folder / file_name(cell), feeds, 2, table.served_with(cell))
            for cell in turned
        }
        facts["profile"].append({cell: parts[cell] for cell in cells})
        _write(out, facts)
    return facts


def summary(key: str, values: np.ndarray[Any, Any], baseline: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A cell's figures by one clock; `values` and `baseline` are (rounds,) milliseconds of the same rounds."""
    return {
        key: float(np.median(values)),
        f"{key}_ratio": float(np.median(values / baseline)),
        f"{key}_quartiles": np.percentile(values, (25, 75)).tolist(),
        f"{key}_samples": values.tolist(),
    }


def _write(out: Path, facts: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and do the one thing asked for."""
    head = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.int8_latency", description=head)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--make", type=Path, metavar="FOLDER", help="export MiniLM and make the models there")
    asked.add_argument("--time", type=Path, metavar="FOLDER", help="time the models that lie there")
    asked.add_argument("--page", action="store_true", help="write docs/int8-latency.md")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where --time writes its figures")
    parser.add_argument("--without-amx", action="store_true", help="time as on a processor without AMX (Linux)")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of every model in a repeat")
    parser.add_argument("--repeats", type=int, default=3, help="how often all is timed, in new sessions")
    options = parser.parse_args(arguments)
    if (options.time is None) != (options.out is None):
        parser.error("--time FOLDER and --out FILE.json belong together")
    if options.without_amx and options.time is None:
        parser.error("--without-amx belongs to --time FOLDER")
    if min(options.rounds, options.repeats) < 1:
        parser.error("--rounds and --repeats are at least 1")
    if options.make:
        make(options.make)
    elif options.time:
        try:
            found(options.time)
        except FileNotFoundError as error:
            parser.error(str(error))
        measure(options.time, options.out, options.rounds, options.repeats, without_amx=options.without_amx)
    else:
        int8_latency_page.PAGE.write_text(int8_latency_page.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
