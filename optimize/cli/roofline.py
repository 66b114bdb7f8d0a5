"""`optimize roofline`: the best latency that each target allows for a model, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimize import console

AXIS_SIZE = 8
"""Size of a dynamic axis that nothing is said about."""


def roofline(
    model: Annotated[Path, typer.Argument(help="An ONNX file; its operations are counted.", show_default=False)],
    optimized: Annotated[
        Path | None,
        typer.Argument(help="What passes made of it; its weights are weighed.", show_default="the model itself"),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", help="A target; repeat it for several.", show_default="every one with rates"),
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="AXIS=N", help="Size of a dynamic axis; 8 if absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show the floor of a run's latency: operations over peak rate or bytes over bandwidth, whichever is longer."""
    from optimize.cli import models
    from optimize.errors import UsageError
    from optimize.evaluate import processor_rates
    from optimize.evaluate import roofline as estimating
    from optimize.report import wording
    from optimize.sources import onnx_load
    from optimize.targets import loading
    from passes.cores import usable_cores

    exported = onnx_load.load_onnx(model)
    ran = onnx_load.load_onnx(optimized) if optimized is not None else exported
    axes = {
        str(dim.value): AXIS_SIZE
        for value in exported.graph.inputs
        for dim in value.shape or ()
        if not isinstance(dim, int) and dim.value is not None
    }
    given = models.sizes_of(sizes)
    for axis in given:
        if axis not in axes:
            raise UsageError(f"--size: no input has an axis '{axis}'; there are: {', '.join(axes) or 'none'}.")
    found = {}
    for name in targets or loading.names():
        if name not in loading.names():
            raise UsageError(
                f"--target: no target is called '{name}'.", hint=f"Known: {', '.join(loading.names())}."
            )
        target = loading.load(name, loading.engines_of(name)[0])
        if name == loading.OWN_PROCESSOR:
            target = processor_rates.with_rates(target, usable_cores())
        floor = estimating.estimate(exported, ran, target, {**axes, **given})
        if floor is not None:
            found[name] = floor
        elif targets:
            raise UsageError(
                f"--target {name}: no peak rates are known for it.",
                hint=f"'{loading.OWN_PROCESSOR}' is this machine's own processor, whose rates are measured.",
            )
    if as_json:
        console.out_json({name: floor.model_dump(mode="json") for name, floor in found.items()})
        return
    first = next(iter(found.values()))
    shown = ", ".join(f"{wording.one_line(axis)} {size}" for axis, size in first.sizes.items()) or "fixed shapes"
    console.out(f"{wording.number(first.operations)} operations, {wording.size(first.bytes_moved)} moved; {shown}")
    for name, floor in sorted(found.items(), key=lambda item: item[1].floor_ms):
        console.out(
            f"{name:<24} {wording.milliseconds(floor.floor_ms):>10}  bound by {floor.bound} "
            f"({wording.milliseconds(floor.compute_ms)} of {floor.precision} arithmetic, "
            f"{wording.milliseconds(floor.memory_ms)} of memory)"
        )
    if first.uncounted:
        console.out(f"not counted: {', '.join(map(wording.one_line, first.uncounted))}")
