"""`optimize cache`: what the store holds, why, and making room."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from optimize import console
from optimize.cli.run import StoreOption, store_folder

app = typer.Typer(help="The store of finished steps.", no_args_is_help=True)
_DAY_S = 86_400.0


@app.command("ls")
def ls(
    store: StoreOption = None, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """List finished steps, oldest first."""
    from optimize.pipeline.store import Store

    kept = Store(store_folder(store))
    entries = kept.entries()
    if as_json:
        console.out_json(
            [{"key": item.key, "stage": item.stage, "bytes": item.size_bytes, **item.record} for item in entries]
        )
        return
    for item in entries:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(item.record["made_at"])))
        figures = f"{item.size_bytes / 1e6:9.1f} MB  {float(item.record['seconds']):7.1f} s"
        console.out(f"{item.key[:12]}  {item.stage:<14} {figures}  {made}")
    console.out(f"{len(entries)} steps, {sum(item.size_bytes for item in entries) / 1e6:.1f} MB")
    if damaged := len(kept.damaged()):
        console.out(f"{damaged} damaged, of no use; `optimize cache prune` removes what is damaged")


@app.command("explain")
def explain(
    key: Annotated[str, typer.Argument(help="The key's first characters, as `ls` shows them.")],
    store: StoreOption = None,
) -> None:
    """Show everything that went into a step's key, and how it differs from the step's previous result."""
    from optimize.errors import UsageError
    from optimize.pipeline.store import Store

    entries = Store(store_folder(store)).entries()
    found = [item for item in entries if item.key.startswith(key)]
    if len(found) != 1:
        raise UsageError(f"'{key}' names {len(found)} steps.", hint="`optimize cache ls` lists them.")
    entry = found[0]
    console.out(f"{entry.stage} {entry.key}")
    console.out_json(entry.inputs)
    earlier = [item for item in entries if item.stage == entry.stage and item.key != entry.key]
    if earlier:
        before = earlier[-1]
        changed = [
            name
            for name in sorted({*before.inputs, *entry.inputs})
            if before.inputs.get(name) != entry.inputs.get(name)
        ]
        console.out(f"differs from {before.key[:12]} in: {', '.join(changed) or 'nothing'}")


@app.command("prune")
def prune(
    store: StoreOption = None,
    days: Annotated[float, typer.Option(help="Remove steps older than this many days.", min=0)] = 30.0,
    everything: Annotated[bool, typer.Option("--all", help="Remove every step.")] = False,
) -> None:
    """Remove old steps, damaged ones, and what dead runs left."""
    from optimize.pipeline.store import Store

    kept = Store(store_folder(store))
    swept = kept.sweep()
    oldest = time.time() - days * _DAY_S
    freed = removed = 0
    for entry in kept.entries():
        if everything or float(entry.record["made_at"]) < oldest:
            freed += kept.remove(entry.directory)
            removed += 1
    for directory in kept.damaged():
        freed += kept.remove(directory)
        removed += 1
    console.out(f"removed {removed} steps ({freed / 1e6:.1f} MB) and {swept} left-over workspaces")
