"""`optimize inspect`: what a model is made of; with two models, side by side; what a plan was built for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimize import console

if TYPE_CHECKING:
    from optimize.facts import ModelFacts


def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX file or a TensorRT plan.", show_default=False)],
    other: Annotated[Path | None, typer.Argument(help="Another one, to compare with.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show inputs, outputs, operators, weights and size; weights are not read and no code runs."""
    from optimize.cli.models import PLANS
    from optimize.errors import UsageError

    plans = [path for path in (model, other) if path is not None and path.suffix in PLANS]
    if plans and other is not None:
        raise UsageError(f"'{plans[0]}' is a plan; plans are inspected one at a time.", hint="See `optimize diff`.")
    if plans:
        _plan(model, as_json=as_json)
        return
    facts = [_facts(path) for path in (model, other) if path is not None]
    if as_json:
        dumped = [item.model_dump(mode="json") for item in facts]
        console.out_json(dumped[0] if len(dumped) == 1 else dumped)
        return
    first = facts[0]
    for label, values in (("inputs", first.inputs), ("outputs", first.outputs)):
        for value in values:
            shape = "?" if value["shape"] is None else " × ".join(str(dim) for dim in value["shape"]) or "scalar"
            _line(f"{label[:-1]:<7} {value['name']}: {value['dtype']} [{shape}]")
    _row("opset", *(str(item.opset) for item in facts))
    _row("size", *(f"{item.size_bytes / 1e6:.1f} MB" for item in facts))
    _row("parameters", *(f"{item.parameters:,}" for item in facts))
    for dtype in sorted({name for item in facts for name in item.weight_bytes}):
        _row(f"weights {dtype}", *(f"{item.weight_bytes.get(dtype, 0) / 1e6:.1f} MB" for item in facts))
    _row("nodes", *(str(item.nodes) for item in facts))
    for name in sorted({name for item in facts for name in item.ops}, key=lambda op: -first.ops.get(op, 0)):
        _row(f"  {name}", *(str(item.ops.get(name, 0)) for item in facts))


def _plan(path: Path, *, as_json: bool) -> None:
    """What the plan's manifest says; the plan is checked against it, and not loaded."""
    from optimize.engines import tensorrt_plan

    manifest = tensorrt_plan.read(path)
    if as_json:
        console.out_json(manifest.model_dump(mode="json"))
        return
    for label, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            shape = " × ".join("?" if size is None else str(size) for size in spec.shape) or "scalar"
            _line(f"{label:<7} {spec.name}: {spec.dtype} [{shape}]")
    for number, profile in enumerate(manifest.profiles):
        for name, shapes in profile.items():
            sizes = ", ".join(
                f"{key} {' × '.join(map(str, getattr(shapes, key)))}" for key in ("min", "opt", "max")
            )
            _line(f"profile {number}  {name}: {sizes}")
    device = manifest.device
    capabilities = ", ".join(manifest.compute_capabilities)
    _row("built by", manifest.title)
    _row("built from", manifest.model)
    _row("built on", f"{device.name}, compute capability {device.compute_capability}" if device else "no GPU")
    _row("built for", f"compute capability {capabilities}" if capabilities else "every GPU it can serve")
    _row("size", f"{manifest.size_bytes / 1e6:.1f} MB{', weights stripped' if manifest.is_stripped else ''}")
    if manifest.plugins:
        _row("needs plugins", ", ".join(manifest.plugins))


def _row(label: str, *cells: str) -> None:
    _line(f"{label:<40}" + " ".join(f"{cell:>16}" for cell in cells))


def _line(text: str) -> None:
    """One line, whatever a name in it holds: one with a line break could pass for a line of ours."""
    console.out(text.replace("\n", "\\n"))


def _facts(path: Path) -> ModelFacts:
    from optimize import onnx_files
    from optimize.pipeline import model_facts
    from optimize.sources import onnx_load

    model = onnx_load.load_onnx(path)
    size = sum(item.stat().st_size for item in onnx_files.files_of(path))
    return model_facts.of(model, size)
