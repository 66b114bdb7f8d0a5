"""`optimize recipe`: recipes as files, read, checked and shown, without touching a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimize import console
from optimize.cli.run import SetOption, variables_of

app = typer.Typer(help="Write, check and read recipes.", no_args_is_help=True)

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]


@app.command("show")
def show(
    recipe: RecipeArgument,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole recipe for machines.")] = False,
) -> None:
    """Check a recipe and show what it comes to: source, target, passes, gates."""
    from optimize.recipe import reading, summary

    loaded = reading.load(recipe, variables=variables_of(set_))
    if as_json:
        console.out_json(loaded.model_dump(mode="json"))
        return
    for label, text in summary.lines(loaded):
        console.out(f"{label:<12} {text}")


@app.command("resolve")
def resolve(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of printing.", show_default=False)
    ] = None,
) -> None:
    """Write a recipe out in full: bases merged, variables replaced, every default said."""
    from optimize.recipe import reading, resolving

    loaded = reading.load(recipe, variables=variables_of(set_))
    beside = output.parent if output is not None else Path.cwd()
    text = resolving.resolve(loaded, beside=beside)
    if output is None:
        console.out(text.rstrip("\n"))
    else:
        output.write_text(text, encoding="utf-8")
        console.err(f"wrote {output}")
