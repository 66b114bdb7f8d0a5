"""`optimize recipe`: recipes as files, read, checked and shown, without touching a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimize import console
from optimize.cli.run import SetOption, variables_of

app = typer.Typer(help="Write, check and read recipes.", no_args_is_help=True)

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]


OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write instead of printing.", show_default=False)
]


@app.command("schema")
def schema(output: OutputOption = None) -> None:
    """Print the JSON Schema of recipe files, for editors; it covers every installed pass."""
    import json

    from optimize.recipe.schema import json_schema

    _deliver(json.dumps(json_schema(), indent=2, ensure_ascii=False), output)


@app.command("new")
def new(
    model: Annotated[
        str | None,
        typer.Argument(
            help="An ONNX file, a .pt2 program, a Hugging Face folder, or file.py:function.", show_default=False
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Where to start from, such as int8-cpu; --list shows them.", show_default=False),
    ] = None,
    output: OutputOption = None,
    list_presets: Annotated[bool, typer.Option("--list", help="List the presets.")] = False,
) -> None:
    """Write a commented starter recipe for a model."""
    from optimize.errors import UsageError
    from optimize.recipe import presets, starter

    if list_presets:
        for name, found in presets.available().items():
            console.out(f"{name:<16} {found.summary}")
        return
    if model is None and preset is None:
        raise UsageError("say which model the recipe is for, or give --preset.", hint="--list shows the presets.")
    if output is not None and output.exists():
        raise UsageError(f"{output}: exists already.", hint="Choose another name, or remove it first.")
    beside = output.parent if output is not None else Path.cwd()
    _deliver(starter.starter(model, preset, beside), output)


def _deliver(text: str, output: Path | None) -> None:
    """Print a text, or write it to a file and say so."""
    from optimize.errors import UsageError

    if output is None:
        console.out(text.rstrip("\n"))
        return
    try:
        output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror}.") from error
    console.err(f"wrote {output}")


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
    output: OutputOption = None,
) -> None:
    """Write a recipe out in full: bases merged, variables replaced, every default said."""
    from optimize.recipe import reading, resolving

    loaded = reading.load(recipe, variables=variables_of(set_))
    beside = output.parent if output is not None else Path.cwd()
    _deliver(resolving.resolve(loaded, beside=beside), output)
