"""`optimize passes`: what passes there are, and what each one takes."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from optimize import console

app = typer.Typer(help="The passes a recipe may name.", no_args_is_help=True)


@app.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """List every pass with its one-line description."""
    from passes import registry

    rows = [(name, _summary(registry.find(name))) for name in registry.names()]
    if as_json:
        console.out_json([{"name": name, "summary": summary} for name, summary in rows])
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        console.out(f"{name:<{width}}  {summary}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A pass, such as fuse.attention.")],
    as_json: Annotated[bool, typer.Option("--json", help="Its options as a JSON Schema.")] = False,
) -> None:
    """Show what a pass does and the options it takes."""
    import difflib

    from optimize.errors import UsageError
    from passes import registry

    try:
        found = registry.find(name)
    except registry.UnknownPass as error:
        near = difflib.get_close_matches(name, registry.names(), n=1)
        raise UsageError(f"{error}.", hint=f"Did you mean '{near[0]}'?" if near else "") from error
    if as_json:
        console.out_json(found.model_json_schema())
        return
    console.out(f"{name}\n\n{inspect.getdoc(found) or ''}\n\nOptions:")
    for option, field in found.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        console.out(f"  {option}: {_type_name(field.annotation)} ({default})\n      {field.description or ''}")


def _summary(found: type[Any]) -> str:
    return (inspect.getdoc(found) or "").partition("\n")[0]


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
