"""Measures every quantization format, algorithm and tool on MiniLM and writes docs/quantization-table.md.

    python -m tests.benchmarks.quantization_table [--modelopt-python PATH] [--only TEXT] [--minutes N]
        [--sentences N] [--rounds N] [--out FILE]

Each model is made in a process of its own (seconds, peak memory). Accuracy is measured on evaluation sentences
(256 unless told) that share none with the 64 for calibration, against FP32: of what the graph says and, to catch
an engine that executes a quantized graph wrongly, of what plain ONNX Runtime makes of it. Latency is
measured with all models in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from optimize.engines.onnxruntime_saturation import EXACT
from tests.benchmarks import fusion_turns, processor, quantization_where
from tests.benchmarks.quantization_cells import CELLS, file_name

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION_SENTENCES = 64
CHOSEN_ON = 256
"""Evaluation sentences, the first ones, that constants and options were chosen on (GPTQ's damping, the exponents of
SmoothQuant). They count no more."""

BASELINE = "int8 | dynamic, per channel | ONNX Runtime"
PROFILED = (
    BASELINE,
    "int8 | dynamic, per channel | ours",
    "int8 | static, SmoothQuant 0.8, GPTQ | ours",
    "int8 | static, outliers split, SmoothQuant 0.6, GPTQ | ours",
)
CELL_SECONDS = 180
Arrays = Mapping[str, np.ndarray]


def main() -> None:
    """Prepare, make, score, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--modelopt-python", default=sys.executable, help="interpreter that has nvidia-modelopt")
    parser.add_argument("--only", default="", help="only cells that contain this text, and the baseline")
    parser.add_argument("--minutes", type=float, default=60, help="start no further cell after this long")
    parser.add_argument("--sentences", type=int, default=256, help="evaluation sentences")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of every model")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quantization-table.md")
    asked = parser.parse_args()
    # The baseline first: whatever the time allows, there is something to compare with.
    cells = [BASELINE, *(cell for cell in CELLS if asked.only in cell and cell != BASELINE)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluation = prepare(folder, asked.sentences)
        expected = as_written(folder / "source.onnx", evaluation)
        made: dict[str, dict[str, Any]] = {}
        until = time.monotonic() + 60 * asked.minutes
        for cell in cells:
            if time.monotonic() > until:
                made[cell] = {"failed": f"not reached in {asked.minutes:g} minutes"}
                continue
            made[cell] = make(cell, folder, asked.modelopt_python)
            if "failed" not in made[cell]:
                score(cell, folder, evaluation, expected, made[cell])
            print(f"  {made[cell]}", file=sys.stderr, flush=True)
        clock(folder, made, asked.rounds)
        profiled = [cell for cell in PROFILED if "failed" not in made.get(cell, {"failed": ""})]
        paths = {cell: folder / file_name(cell) for cell in profiled}
        where = quantization_where.section(paths, BASELINE, timed_batch(), served_with)
    asked.out.write_text(page(made, asked) + where, encoding="utf-8")
    print(f"wrote {asked.out}")


def prepare(folder: Path, sentences: int) -> list[Arrays]:
    """Export MiniLM, clean and fuse a copy, store the calibration batches; gives the evaluation batches."""
    import onnx_ir as ir
    import torch

    from calibration_data import docstrings
    from examples import minilm
    from passes import registry, saving
    from tests.support.runner import context

    built = minilm.build()
    names = ["input_ids", "attention_mask"]
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=2, max=512)
    # Two tensors: the exporter takes one object in two places for one input.
    sample = tuple(torch.ones(2, 16, dtype=torch.long) for _ in names)
    exported = torch.onnx.export(
        built["module"].eval(), sample, dynamo=True, verbose=False, input_names=names,
        output_names=["sentence_embedding"], dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
    )  # fmt: skip
    assert exported is not None
    exported.save(folder / "source.onnx")
    model = ir.load(folder / "source.onnx")
    for room in ("clean", "fuse"):
        for name in registry.room_default(room):
            registry.find(name)().apply(model, context())
    saving.save(model, folder / "fused.onnx")
    stored = {
        f"{name}_{index}": array
        for index, batch in enumerate(docstrings.calibration(CALIBRATION_SENTENCES))
        for name, array in batch.items()
    }
    np.savez(folder / "calibration.npz", allow_pickle=False, **stored)
    untouched = itertools.islice(docstrings.sentences("evaluation"), CHOSEN_ON, None)
    return list(docstrings.batches(untouched, sentences, batch=8, longest=128))


def make(cell: str, folder: Path, modelopt_python: str) -> dict[str, Any]:
    """Run one cell; a failure becomes its last line."""
    python = modelopt_python if cell.endswith("ModelOpt") else sys.executable
    print(f"make {cell}", file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [python, "-m", "tests.benchmarks.quantization_cells", cell, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CELL_SECONDS, env=environment, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {CELL_SECONDS} s"}
    for line in reversed(done.stdout.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and "seconds" in record:
                return {**record, "bytes": size(folder / file_name(cell))}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failed": (lines[-1] if lines else f"exit code {done.returncode}").replace("|", "/")[:160]}


def size(path: Path) -> int:
    """Bytes of the model and its data file."""
    return sum(item.stat().st_size for item in path.parent.glob(path.name + "*"))


def opened(path: Path, threads: int = 2, config: Mapping[str, str] | None = None) -> onnxruntime.InferenceSession:
    """A CPU session with graph optimisation: ONNX Runtime's as it comes, but for `config`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def as_written(path: Path, batches: list[Arrays]) -> np.ndarray:
    """(sentences, 384) float64 embeddings that the graph says, whatever the processor."""
    from optimize.engines.onnxruntime_session import open_onnx  # needs more than timing does

    with open_onnx(path, optimized=False, threads=1) as session:
        (name,) = (output.name for output in session.outputs)
        return np.concatenate([session.run(dict(batch))[name] for batch in batches]).astype(np.float64)


def as_served(path: Path, batches: list[Arrays], config: Mapping[str, str]) -> np.ndarray:
    """(sentences, 384) float64 embeddings with graph optimisation."""
    session = opened(path, 1, config)
    return np.concatenate([session.run(None, dict(batch))[0] for batch in batches]).astype(np.float64)


def served_with(cell: str) -> Mapping[str, str]:
    """Session configuration entries: the product's for our models, none for the others.

    The product tries whether this processor saturates; timing has to do with what the processor says of itself.
    """
    exact_as_it_is = {"amx_int8", "avx512_vnni", "avx_vnni"} & set(processor.instruction_sets())
    return EXACT if cell.endswith("| ours") and not exact_as_it_is else {}


def score(cell: str, folder: Path, batches: list[Arrays], expected: np.ndarray, record: dict[str, Any]) -> None:
    """Add the accuracy figures, or why the model cannot be run."""
    path = folder / file_name(cell)
    try:
        got = as_written(path, batches)
        served = as_served(path, batches, served_with(cell))
    except Exception as error:  # the engine's refusal is the finding
        record["failed"] = "made, but not runnable: " + str(error).splitlines()[0].replace("|", "/")[:130]
        return
    record["sqnr_db"] = 10 * np.log10(np.square(expected).sum() / np.square(got - expected).sum())
    angles = cosines(expected, got)
    record["mean"], record["least"] = angles.mean(), angles.min()
    record["neighbours"] = float((nearest(expected) == nearest(got)).mean())
    record["served"] = cosines(expected, served).mean()


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(rows,) cosine of each pair of rows."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / norms)


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """(rows,) index of each row's most similar other row."""
    likeness = embeddings @ embeddings.T
    np.fill_diagonal(likeness, -np.inf)
    return np.asarray(likeness.argmax(axis=1))


def timed_batch() -> dict[str, np.ndarray]:
    """8 × 128 random tokens, no padding."""
    tokens = np.random.default_rng(0).integers(1000, 30000, (8, 128))
    return {"input_ids": tokens, "attention_mask": np.ones((8, 128), np.int64)}


def clock(folder: Path, made: dict[str, dict[str, Any]], rounds: int) -> None:
    """Add medians of `turns` and of the ratios to the baseline to every record of a model that was made."""
    cells = [cell for cell, record in made.items() if "failed" not in record]
    for key, samples in turns(folder, cells, rounds).items():
        for cell, values in samples.items():
            made[cell][key] = float(np.median(values))
            made[cell][f"{key}_ratio"] = float(np.median(values / samples[BASELINE]))


def turns(folder: Path, cells: Sequence[str], rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """Wall milliseconds on two threads and processor milliseconds on one, all models taking turns.

    Each turn sleeps until the thread pools of the others sleep too and makes a call that does not count. Without
    that, a pool that spins on takes half of two cores from the next model, and the fastest lose most.

    Returns:
        By "wall_ms" and "cpu_ms", by cell: (rounds,) milliseconds.
    """
    feeds = timed_batch()
    found: dict[str, dict[str, np.ndarray]] = {}
    for threads, key in ((2, "wall_ms"), (1, "cpu_ms")):
        sessions = {cell: opened(folder / file_name(cell), threads, served_with(cell)) for cell in cells}
        runs = {cell: functools.partial(session.run, None, feeds) for cell, session in sessions.items()}
        now = time.perf_counter if threads > 1 else time.process_time
        found[key] = fusion_turns.measure(runs, rounds, fusion_turns.Turn(timed=1), now)
    return found


HEADER = (
    "| format | algorithm | whose | SQNR dB | cosine mean | least | neighbours | served | MB | make s | peak GB "
    "| ms, 2 threads | of baseline | ms CPU, 1 thread | of baseline |\n|---|---|---|" + "---:|" * 12 + "\n"
)


def page(made: dict[str, dict[str, Any]], asked: argparse.Namespace) -> str:
    """The page as Markdown, with the command that writes it again."""
    busy = os.getloadavg()[0]
    today = datetime.datetime.now(tz=datetime.UTC).date()
    command = "python -m tests.benchmarks.quantization_table" + (f" --only {asked.only!r}" if asked.only else "")
    command += f" --minutes {asked.minutes:g} --sentences {asked.sentences} --rounds {asked.rounds}"
    text = (
        "# Quantization, format by algorithm by tool\n\n"
        f"Written by `{command}`; not edited by hand.\n\n"
        f"MiniLM-L6, {CALIBRATION_SENTENCES} calibration sentences and {asked.sentences} others that nothing was "
        f"chosen on, all from docstrings, against FP32. ONNX Runtime {onnxruntime.__version__}, "
        f"{os.cpu_count()} CPUs ({platform.machine()}, {', '.join(processor.instruction_sets())}), {today}, "
        f"{busy:.0f} tasks wanting a CPU at the end: above {os.cpu_count()}, wall times are too long. "
        "Cosines and neighbours (same nearest sentence as FP32) of what the graph says, without graph "
        "optimisation (with as little as makes integer operators exact); *served* is the mean cosine with it, as "
        "plain ONNX Runtime runs it (ours as the product does), where a lower figure means that the engine "
        "executes the graph wrongly. Latency: likewise, "
        f"8 × 128 tokens, all models in turns, median of {asked.rounds}; ratios are medians over the rounds, to "
        f"`{BASELINE}`. FP8 and FP4 are simulated in FP32 arithmetic on a CPU: their times say nothing. "
        "*Ours* is made from the cleaned and fused model. INT8 latency by processor: "
        "[int8-latency.md](int8-latency.md).\n\n"
    ) + HEADER
    for cell, record in made.items():
        if "failed" in record:
            text += f"| {cell} | {record['failed']} |" + " |" * 11 + "\n"
            continue
        text += (
            f"| {cell} | {record['sqnr_db']:.1f} | {record['mean']:.4f} | {record['least']:.4f} "
            f"| {record['neighbours']:.3f} | {record['served']:.4f} | {record['bytes'] / 1e6:.0f} "
            f"| {record['seconds']:.1f} | {record['peak_bytes'] / 1e9:.2f} | {record['wall_ms']:.0f} "
            f"| {record['wall_ms_ratio']:.2f} | {record['cpu_ms']:.0f} | {record['cpu_ms_ratio']:.2f} |\n"
        )
    return text


if __name__ == "__main__":
    main()
