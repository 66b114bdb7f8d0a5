"""`optimize run`: a recipe to its verdict."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from optimize import console

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Folder of the store.", envvar="OPTIMIZE_STORE", show_default=False)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A value for one of the recipe's variables.")
]


def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.")] = None,
    store: StoreOption = None,
    set_: SetOption = None,
    fresh: Annotated[
        list[str] | None, typer.Option("--fresh", help="A step to run again although it is stored, or `all`.")
    ] = None,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Refuse recipes that name Python code to run.")
    ] = False,
    until: Annotated[
        str | None, typer.Option(help="Stop after `passes` or `build`; what comes later is neither run nor judged.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickles, which run code; only from people you trust.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Run a recipe: capture, optimise, build, compare, time, and judge.

    Ends with 0 when every gate holds, 1 when one does not, 4 when a step failed.
    """
    from optimize.cli.progress import RunProgress
    from optimize.pipeline import running
    from optimize.pipeline.stages import STAGES
    from optimize.recipe import reading

    loaded = reading.load(recipe, variables=variables_of(set_))
    if data_only:
        from optimize.pipeline import trust

        trust.refuse_code(loaded)
    options = running.RunOptions(
        store=store_folder(store),
        output=output,
        command=shlex.join(["optimize", *sys.argv[1:]]),
        allow_pickle=allow_pickle,
        until=until_step(until),
        fresh=fresh_steps(fresh or [], tuple(STAGES)),
    )
    with RunProgress() as progress:
        result = running.run(loaded, options, progress)
    show(result, as_json=as_json)
    return result.exit_code


def show(result: object, *, as_json: bool) -> None:
    """Print a finished run."""
    from optimize.pipeline.running import RunResult
    from optimize.report import terminal

    assert isinstance(result, RunResult)
    if as_json:
        console.out_json(result.report.model_dump(mode="json"))
    else:
        terminal.show(result.report, result.output)
    if result.error is not None:
        console.err(f"error: {result.error.message}")
        if result.error.hint:
            console.err(f"  → {result.error.hint}")


def until_step(given: str | None) -> Literal["passes", "build"] | None:
    """`--until` as the pipeline takes it.

    Raises:
        UsageError: When it names another step.
    """
    from optimize.errors import UsageError

    if given is None or given == "passes" or given == "build":
        return given  # type: ignore[return-value]
    raise UsageError(f"--until: expected passes or build, got '{given}'.")


def fresh_steps(given: Sequence[str], known: Sequence[str]) -> frozenset[str]:
    """The steps that `--fresh` names.

    Raises:
        UsageError: When there is no such step.
    """
    from optimize.errors import UsageError

    for name in given:
        if name != "all" and name not in known:
            raise UsageError(f"--fresh: there is no step '{name}'.", hint=f"Steps: {', '.join(known)}, or all.")
    return frozenset(known if "all" in given else given)


def variables_of(pairs: list[str] | None) -> dict[str, str]:
    """`--set name=value` as a mapping.

    Raises:
        UsageError: When one has no "=".
    """
    from optimize.errors import UsageError

    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set: expected NAME=VALUE, got '{pair}'.")
        found[name] = value
    return found


def store_folder(named: Path | None) -> Path:
    """The store's folder: the named one, else the user's own."""
    from optimize.pipeline.store import default_root

    return named if named is not None else default_root()
