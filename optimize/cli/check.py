"""`optimize check`: what a recipe will do, and what stands in the way; nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimize import console
from optimize.cli.run import SetOption, StoreOption, store_folder, until_step, variables_of


def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    store: StoreOption = None,
    set_: SetOption = None,
    until: Annotated[str | None, typer.Option(help="Estimate a run that stops after `passes` or `build`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> int:
    """Check a recipe and show its plan, without reading weights or running any of its code.

    For models of 256 MB and more the plan says how much time, memory and disk each step will take.
    """
    from optimize.pipeline import outputs, preflight
    from optimize.recipe import reading

    loaded = reading.load(recipe, variables=variables_of(set_))
    plan = preflight.plan(loaded, store_folder(store), until=until_step(until))
    if as_json:
        console.out_json(
            {
                "target": plan.target.model_dump(mode="json"),
                "steps": list(plan.steps),
                "estimate": [step.model_dump(mode="json") for step in plan.estimate.steps] if plan.estimate else [],
                "problems": [str(problem) for problem in plan.problems],
            }
        )
    else:
        console.out("\n".join(plan.steps))
    if plan.problems:
        raise outputs.first_of(plan.problems)
    return 0
