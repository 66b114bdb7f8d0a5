"""A matrix of recipes, run on this machine or on a Ray cluster, into one store; and the Pareto front of it.

Two rounds: first every run without timing, several at once; then the timing alone, one run at a time per
machine, since runs beside each other would measure each other. The store keeps what the first round computed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from optimize import errors
from optimize.pipeline import files, running
from optimize.pipeline.executing import Silent
from optimize.recipe import reading
from optimize.report import front
from optimize.sweep_facts import Point, Sweep

LONGEST_LABEL = 120
"""Bytes; file systems take 255 for a name, and a run's files add theirs to the path."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One recipe with values for its variables.

    Attributes:
        label: Unique within the sweep; also the name of its output folder.
    """

    recipe: Path
    variables: Mapping[str, str]
    label: str


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
        found.append(Task(path, variables, _label([path.stem, *values])))
    labels = [task.label for task in found]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise errors.UsageError(f"two runs of the sweep are called '{sorted(twice)[0]}'; rename one recipe.")
    return found


def _label(parts: Sequence[str]) -> str:
    """The parts as a folder's name; a long one ends in a digest of the rest."""
    label = "-".join(parts).replace("/", "_")
    if len(label.encode()) <= LONGEST_LABEL:
        return label
    kept = label.encode()[: LONGEST_LABEL - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


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
    return list(front.with_front(points))


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
    cosine = min(cosines) if cosines and all(map(math.isfinite, cosines)) else None
    timed = {item.contender: item for item in report.throughput.contenders} if report.throughput else {}
    ratios = [item for item in report.throughput.speedups if item.over == "original"] if report.throughput else []
    return Point(
        label=task.label,
        variables=dict(task.variables),
        verdict=report.verdict,
        cosine=cosine,
        latency_ms=timed["optimized"].p50_ms if "optimized" in timed else None,
        speedup=ratios[0].ratio if ratios else None,
        size_bytes=report.optimized.size_bytes if report.optimized else None,
        error=str(result.error or ""),
    )


def write(points: Sequence[Point], output: Path) -> None:
    """Write `sweep.json`, the table and the plot beside it, and the sweep's points into each run's own report."""
    from optimize.report import pareto, writing
    from optimize.report import reading as reports

    rows = [point.model_dump(mode="json") for point in points]
    files.write_atomically(
        output / "sweep.json", json.dumps({"schema_version": 1, "points": rows}, indent=2).encode()
    )
    files.write_atomically(output / "sweep.md", pareto.markdown(points).encode())
    files.write_atomically(output / "sweep.html", pareto.page(points).encode())
    for point in points:
        folder = output / point.label
        if point.verdict != "ERROR" and (folder / "report.json").is_file():
            report = reports.read(folder)
            placed = report.model_copy(update={"sweep": Sweep(label=point.label, points=tuple(points))})
            writing.write(placed, folder)


def _drain(futures: Iterable[concurrent.futures.Future[Point]]) -> None:
    """Wait for all; what failed is run again, and reported, in the second round."""
    concurrent.futures.wait(list(futures))
