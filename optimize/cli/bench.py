"""`optimize bench`: how fast models are, timed in turns."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimize import console

if TYPE_CHECKING:
    from optimize.engines.base import Session


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files or engines; several are timed in turns.", show_default=False)
    ],
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="AXIS=N", help="Size of a dynamic axis; 1 if absent.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz with the inputs; random if absent.")] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of each.", min=5)] = 100,
    seconds: Annotated[float, typer.Option(help="Stop after this long.", min=0.1)] = 30.0,
    threads: Annotated[int | None, typer.Option(help="Threads of each; all cores if absent.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Time models: throughput, latency minimum, mean, median and percentiles, and the ratio of two."""
    from optimize.cli import models as opening
    from optimize.cli.progress import StepProgress
    from optimize.evaluate import throughput
    from optimize.report.wording import one_line

    progress = StepProgress()
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for path in models:
            name = path.name if path.name not in sessions else str(path)
            sessions[name] = stack.enter_context(opening.open_model(path, threads))
        first = next(iter(sessions.values()))
        loaded = opening.batches_for(
            models[0],
            first.inputs,
            data=str(data.resolve()) if data else None,
            labels=None,
            samples=None,
            sizes=opening.sizes_of(sizes),
            absent=1,
        )
        feeds = dict(next(iter(loaded)).feeds)
        result = throughput.measure(
            sessions, feeds, runs=runs, seconds=seconds, threads=threads, seed=0, progress=progress
        )
    progress.clear()
    if as_json:
        console.out_json(result.model_dump(mode="json"))
        return
    shapes = (f"{one_line(name)}: {' × '.join(map(str, shape))}" for name, shape in result.shapes.items())
    console.out(", ".join(shapes))
    for item in result.contenders:
        console.out(f"\n{one_line(item.contender)}  ({one_line(item.title)})")
        console.out(f"  throughput   {item.throughput_per_s:.1f} samples/s, {1e3 / item.p50_ms:.1f} runs/s")
        tail = "".join(
            f", p{name} {value:.3f}"
            for name, value in (("90", item.p90_ms), ("99", item.p99_ms))
            if value is not None
        )
        console.out(
            f"  latency ms   min {min(item.samples_ms):.3f}, mean {item.mean_ms:.3f}, median {item.p50_ms:.3f}, "
            f"max {max(item.samples_ms):.3f}{tail}  ({len(item.samples_ms)} runs, {item.warmup_runs} to warm up)"
        )
        for key, value in item.details.items():
            console.out(f"  {key:<12} {_detail(value)}")
    for ratio in result.speedups:
        verdict = "" if ratio.is_significant else "  no significant difference"
        console.out(
            f"\n{ratio.of} is {ratio.ratio:.2f} × as fast as {ratio.over} (95 %: {ratio.low:.2f}–{ratio.high:.2f})"
            f"{verdict}"
        )


def _detail(value: object) -> str:
    """A row of figures in a line: "min 0.571, max 0.610"; what was not measured is left out."""
    if not isinstance(value, dict):
        return str(value)
    shown = {key: item for key, item in value.items() if item is not None and item != ()}
    return ", ".join(
        f"{key} {item:.3f}" if isinstance(item, float) else f"{key} {item}" for key, item in shown.items()
    )
