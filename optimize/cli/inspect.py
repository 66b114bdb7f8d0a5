"""`optimize inspect`: what a model is made of; with two models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimize import console

if TYPE_CHECKING:
    from optimize.facts import ModelFacts


def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)],
    other: Annotated[Path | None, typer.Argument(help="Another one, to compare with.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show inputs, outputs, operators, weights and size; weights are not read and no code runs."""
    facts = [_facts(path) for path in (model, other) if path is not None]
    if as_json:
        dumped = [item.model_dump(mode="json") for item in facts]
        console.out_json(dumped[0] if len(dumped) == 1 else dumped)
        return
    first = facts[0]
    for label, values in (("inputs", first.inputs), ("outputs", first.outputs)):
        for value in values:
            shape = "?" if value["shape"] is None else " × ".join(str(dim) for dim in value["shape"]) or "scalar"
            console.out(f"{label[:-1]:<7} {value['name']}: {value['dtype']} [{shape}]")
    _row("opset", *(str(item.opset) for item in facts))
    _row("size", *(f"{item.size_bytes / 1e6:.1f} MB" for item in facts))
    _row("parameters", *(f"{item.parameters:,}" for item in facts))
    for dtype in sorted({name for item in facts for name in item.weight_bytes}):
        _row(f"weights {dtype}", *(f"{item.weight_bytes.get(dtype, 0) / 1e6:.1f} MB" for item in facts))
    _row("nodes", *(str(item.nodes) for item in facts))
    for name in sorted({name for item in facts for name in item.ops}, key=lambda op: -first.ops.get(op, 0)):
        _row(f"  {name}", *(str(item.ops.get(name, 0)) for item in facts))


def _row(label: str, *cells: str) -> None:
    console.out(f"{label:<40}" + "".join(f"{cell:>16}" for cell in cells))


def _facts(path: Path) -> ModelFacts:
    from optimize import onnx_files
    from optimize.pipeline import model_facts
    from optimize.sources import onnx_load

    model = onnx_load.load_onnx(path)
    size = sum(item.stat().st_size for item in onnx_files.files_of(path))
    return model_facts.of(model, size)
