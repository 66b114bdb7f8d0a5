"""A matrix of recipes, run on this machine or on a Ray cluster, into one store; and the Pareto front of it.

Two rounds: first every run without timing, several at once; then the timing alone, one run at a time per
machine, since runs beside each other would measure each other. The store keeps what the first round computed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimize import errors
from optimize.facts import Fact
from optimize.pipeline import files, running
from optimize.pipeline.executing import Silent
from optimize.recipe import reading


@dataclasses.dataclass(frozen=True)
class Task:
    """One recipe with values for its variables.

    Attributes:
        label: Unique within the sweep; also the name of its output folder.
    """

    recipe: Path
    variables: Mapping[str, str]
    label: str


class Point(Fact):
    """One run's place in the plane of accuracy, latency and size.

    Attributes:
        cosine: Mean cosine of the engine (or the simulated model) against the original.
        latency_ms: Median of the optimised engine.
        size_bytes: Of the optimised ONNX with its data.
        verdict: "PASS", "FAIL" or "ERROR".
        is_on_front: Whether no other passing run is better in one figure and at least as good in the others.
    """

    label: str
    variables: dict[str, str]
    verdict: str
    cosine: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    size_bytes: int | None = None
    error: str = ""
    is_on_front: bool = False


def tasks(recipes: Sequence[Path], vary: Mapping[str, Sequence[str]]) -> list[Task]:
    """Every recipe with every combination of the varied variables.

    Raises:
        RecipeError: When one of them is no valid recipe; all are read before any runs.
        UsageError: When two would write into the same folder.
    """
    found = []
    for path, values in itertools.product(recipes, itertools.product(*vary.values())):
        variables = dict(zip(vary, values, strict=True))
        reading.load(path, variables=variables)
        label = "-".join([path.stem, *values])
        found.append(Task(path, variables, label.replace("/", "_")))
    labels = [task.label for task in found]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise errors.UsageError(f"two runs of the sweep are called '{sorted(twice)[0]}'; rename one recipe.")
    return found


def run(
    wanted: Sequence[Task],
    *,
    store: Path,
    output: Path,
    workers: int,
    ray_address: str | None,
    cpus_per_task: float,
    gpus_per_task: float,
    on_done: Callable[[str, str], None],
) -> list[Point]:
    """Run every task and return one point each, in the tasks' order; a failed run is a point with its error.

    Args:
        wanted: What to run.
        store: The shared store; on a cluster a folder that every node sees.
        output: Each run writes to `output/<label>/`.
        workers: Runs at once on this machine in the first round.
        ray_address: A Ray cluster's address, "local" to start one here; None: a pool of processes here.
        cpus_per_task: What a task reserves on the cluster.
        gpus_per_task: Likewise; fractions are allowed.
        on_done: Called with (label, verdict) as runs end.
    """
    arguments = [(task, str(store), str(output / task.label)) for task in wanted]
    if ray_address is None:
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            _drain(pool.submit(run_one, *item, False) for item in arguments)
        points = []
        for item in arguments:
            points.append(run_one(*item, True))
            on_done(points[-1].label, points[-1].verdict)
    else:
        from optimize.pipeline import ray_cluster

        points = ray_cluster.run(arguments, ray_address, cpus_per_task, gpus_per_task, on_done)
    return with_front(points)


def run_one(task: Task, store: str, output: str, is_timed: bool) -> Point:
    """Run one task in this process and read its point off the report."""
    try:
        recipe = reading.load(task.recipe, variables=dict(task.variables))
        if not is_timed:
            untimed = recipe.evaluate.model_copy(update={"throughput": None})
            recipe = recipe.model_copy(update={"evaluate": untimed})
        options = running.RunOptions(store=Path(store), output=Path(output), command=f"sweep {task.label}")
        result = running.run(recipe, options, Silent())
    except errors.OptimizeError as error:
        return Point(label=task.label, variables=dict(task.variables), verdict="ERROR", error=str(error))
    return point_of(task, result)


def point_of(task: Task, result: running.RunResult) -> Point:
    """A run's point."""
    report = result.report
    final = report.accuracy[-1] if report.accuracy else None
    cosines = [item.cosine for item in final.outputs if item.cosine is not None] if final else []
    timed = {item.contender: item for item in report.throughput.contenders} if report.throughput else {}
    ratios = [item for item in report.throughput.speedups if item.over == "original"] if report.throughput else []
    return Point(
        label=task.label,
        variables=dict(task.variables),
        verdict=report.verdict,
        cosine=min(cosines) if cosines else None,
        latency_ms=timed["optimized"].p50_ms if "optimized" in timed else None,
        speedup=ratios[0].ratio if ratios else None,
        size_bytes=report.optimized.size_bytes if report.optimized else None,
        error=str(result.error or ""),
    )


def with_front(points: Iterable[Point]) -> list[Point]:
    """Mark the points that no other point dominates; failed runs and runs without figures are never on it."""
    found = list(points)
    able = [item for item in found if item.verdict != "ERROR" and item.cosine is not None]
    return [
        item.model_copy(update={"is_on_front": item in able and not any(_dominates(other, item) for other in able)})
        for item in found
    ]


def _dominates(one: Point, other: Point) -> bool:
    """Whether `one` is at least as good everywhere and better somewhere; a missing figure counts as worst."""
    worst = float("inf")
    pairs = [
        (-(one.cosine or 0.0), -(other.cosine or 0.0)),
        (one.latency_ms or worst, other.latency_ms or worst),
        (one.size_bytes or worst, other.size_bytes or worst),
    ]
    return all(left <= right for left, right in pairs) and any(left < right for left, right in pairs)


def write(points: Sequence[Point], output: Path) -> None:
    """Write `sweep.json`, and the table and plot beside it."""
    from optimize.report import pareto

    rows: list[dict[str, Any]] = [point.model_dump(mode="json") for point in points]
    files.write_atomically(
        output / "sweep.json", json.dumps({"schema_version": 1, "points": rows}, indent=2).encode()
    )
    files.write_atomically(output / "sweep.md", pareto.markdown(rows).encode())
    files.write_atomically(output / "sweep.html", pareto.page(rows).encode())


def _drain(futures: Iterable[concurrent.futures.Future[Point]]) -> None:
    """Wait for all; what failed is run again, and reported, in the second round."""
    concurrent.futures.wait(list(futures))
