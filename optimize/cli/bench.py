"""`optimize bench`: how fast models are, timed in turns."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from optimize.cli.progress import StepProgress
    from optimize.evaluate import throughput

    progress = StepProgress()
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for path in models:
            name = path.name if path.name not in sessions else str(path)
            sessions[name] = stack.enter_context(_open(path, threads))
        first = next(iter(sessions.values()))
        feeds = _feeds(first, data, _sizes(sizes))
        result = throughput.measure(
            sessions, feeds, runs=runs, seconds=seconds, threads=threads, seed=0, progress=progress
        )
    progress.clear()
    if as_json:
        console.out_json(result.model_dump(mode="json"))
        return
    console.out(", ".join(f"{name}: {' × '.join(map(str, shape))}" for name, shape in result.shapes.items()))
    for item in result.contenders:
        console.out(f"\n{item.contender}  ({item.title})")
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
            console.out(f"  {key}   {value}")
    for ratio in result.speedups:
        verdict = "" if ratio.is_significant else "  no significant difference"
        console.out(
            f"\n{ratio.of} is {ratio.ratio:.2f} × as fast as {ratio.over} (95 %: {ratio.low:.2f}–{ratio.high:.2f})"
            f"{verdict}"
        )


def _open(path: Path, threads: int | None) -> Session:
    from optimize.engines import registry
    from optimize.errors import UsageError

    if not path.exists():
        raise UsageError(f"there is no file '{path}'.")
    if path.suffix in (".plan", ".engine", ".trt"):
        return registry.create({"kind": "tensorrt"}).open(path)
    if path.suffix in (".onnx", ".ort"):
        return registry.create({"kind": "onnxruntime", **({"threads": threads} if threads else {})}).open(path)
    raise UsageError(f"'{path}' is no .onnx, .ort or .plan file.")


def _sizes(given: list[str] | None) -> dict[str, int]:
    from optimize.errors import UsageError

    found = {}
    for item in given or ():
        axis, _, size = item.partition("=")
        if not axis or not size.isdigit() or int(size) < 1:
            raise UsageError(f"--size: expected AXIS=N, got '{item}'.")
        found[axis] = int(size)
    return found


def _feeds(session: Session, data: Path | None, sizes: dict[str, int]) -> dict[str, Any]:
    from optimize.engines.base import AxisRange
    from optimize.evaluate import feeds

    ranges = {
        axis: AxisRange(size, size, size)
        for spec in session.inputs
        for axis in spec.shape
        if isinstance(axis, str)
        for size in [sizes.get(axis, 1)]
    }
    loaded = feeds.load_batches(
        str(data.resolve()) if data else "random",
        samples=None
        if data
        else max((item.typical for axis, item in ranges.items() if "batch" in axis), default=1),
        batch=max((item.typical for axis, item in ranges.items() if "batch" in axis), default=1),
        arguments={},
        base=Path.cwd(),
        inputs=session.inputs,
        ranges=ranges,
        labels=None,
        seed=0,
    )
    return dict(next(iter(loaded)).feeds)
