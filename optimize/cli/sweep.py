"""`optimize sweep`: a matrix of recipes and its Pareto front."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from optimize import console
from optimize.cli.run import StoreOption, store_folder


def sweep(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes to run.", show_default=False)],
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="NAME=A,B,C", help="Values to try for a recipe's variable."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("out/sweep"),
    store: StoreOption = None,
    workers: Annotated[int, typer.Option(help="Runs at once on this machine; timing is always alone.", min=1)] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster, `auto` for the running one, `local` to start one here.")
    ] = None,
    cpus_per_task: Annotated[float, typer.Option(help="CPUs a task reserves on the cluster.")] = 1.0,
    gpus_per_task: Annotated[float, typer.Option(help="GPUs a task reserves on the cluster.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> int:
    """Run every recipe with every combination of the varied variables, and show which ones are worth having.

    Ends with 0 when every run passes, 1 when a gate failed somewhere, 4 when a run could not finish.
    """
    from optimize.errors import GATE_FAILED, PASSED, STAGE_FAILED
    from optimize.pipeline import sweeping
    from optimize.report import pareto

    wanted = sweeping.tasks(recipes, _varied(vary))
    console.err(f"{len(wanted)} runs")
    points = sweeping.run(
        wanted,
        store=store_folder(store).resolve(),
        output=output.resolve(),
        workers=workers,
        ray_address=ray_address,
        cpus_per_task=cpus_per_task,
        gpus_per_task=gpus_per_task,
        on_done=lambda label, verdict: console.err(f"{verdict:<5} {label}"),
    )
    sweeping.write(points, output)
    if as_json:
        console.out_json([point.model_dump(mode="json") for point in points])
    else:
        console.out(pareto.table(points))
        console.out(f"\n{output / 'sweep.html'}")
    verdicts = {point.verdict for point in points}
    return STAGE_FAILED if "ERROR" in verdicts else GATE_FAILED if "FAIL" in verdicts else PASSED


def _varied(given: list[str] | None) -> dict[str, list[str]]:
    from optimize.errors import UsageError

    found = {}
    for item in given or ():
        name, _, values = item.partition("=")
        split = [value.strip() for value in _split(values) if value.strip()]
        if not name or not split:
            raise UsageError(f"--vary: expected NAME=A,B,C, got '{item}'.")
        found[name] = split
    return found


def _split(values: str) -> Iterator[str]:
    """At commas outside brackets, which belong to a value: "[clean],[clean, fuse]" holds two."""
    depth, start = 0, 0
    for place, letter in enumerate(values):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            yield values[start:place]
            start = place + 1
    yield values[start:]
