"""From a PyTorch module to an ONNX graph: the modern exporter first, others only when it fails."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from optimize.engines.base import Progress
from optimize.errors import StageFailed
from optimize.sources.graph_names import rename_axes, rename_interface, strip_traces
from optimize.sources.quiet import quiet
from optimize.sources.torch_model import TorchModel

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported graph.

    Attributes:
        model: Inputs and outputs named as the user asked; weights shared with the module.
        exporter: "torch.onnx.export(dynamo=True), torch 2.13.0".
        notes: One sentence per exporter that failed before.
    """

    model: ir.Model
    exporter: str
    notes: tuple[str, ...]


def export_module(source: TorchModel, opset: int | None, progress: Progress) -> Exported:
    """Export a module, trying one exporter after the other.

    Raises:
        StageFailed: When none can take it; one line why for each.
    """
    attempts: tuple[tuple[str, Callable[[], ir.Model]], ...] = (
        ("torch.onnx.export(dynamo=True)", lambda: _by_program(source, opset, strict=False)),
        ("torch.onnx.export(dynamo=True), strict", lambda: _by_program(source, opset, strict=True)),
        (
            "torch.onnx.export(dynamo=True), inferred axes",
            lambda: _by_program(source, opset, strict=False, inferred=True),
        ),
        ("torch.onnx.export(dynamo=False)", lambda: _by_torchscript(source, opset)),
    )
    return first_that_works(attempts, list(source.inputs), source.output_names, progress)


def export_program(
    program: torch.export.ExportedProgram,
    opset: int | None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axis_names: Callable[[ir.Model], Mapping[str, str]],
    progress: Progress,
) -> Exported:
    """Translate a saved program.

    Args:
        inputs: One name per user input of the program.
        outputs: One name per user output.
        axis_names: Reads from the translated graph how its symbols are to be called.

    Raises:
        StageFailed: When the translation fails.
    """

    def translate() -> ir.Model:
        model = _translate(program, opset)
        rename_axes(model, axis_names(model))
        return model

    return first_that_works((("torch.onnx.export(dynamo=True)", translate),), inputs, outputs, progress)


def first_that_works(
    attempts: Sequence[tuple[str, Callable[[], ir.Model]]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    progress: Progress,
) -> Exported:
    """The first attempt's graph, named and stripped; the reason of each that failed as a note.

    Raises:
        StageFailed: When all fail.
    """
    import torch

    failures: list[str] = []
    for number, (title, attempt) in enumerate(attempts):
        progress(f"export by {title}", number, len(attempts))
        try:
            with quiet():
                model = attempt()
        # Exporters raise whatever the traced code and their own passes raise; the next one is tried.
        except Exception as error:
            failures.append(f"{title}: {_reason(error)}")
            continue
        if len(model.graph.outputs) != len(outputs) or len(model.graph.inputs) != len(inputs):
            failures.append(
                f"{title}: the graph has {len(model.graph.inputs)} inputs and {len(model.graph.outputs)} "
                f"outputs, the module {len(inputs)} and {len(outputs)}"
            )
            continue
        strip_traces(model)
        rename_interface(model, inputs, outputs)
        model.graph.name = "model"
        version = torch.__version__.partition("+")[0]
        return Exported(model, f"{title}, torch {version}", tuple(f"Exporter failed: {line}." for line in failures))
    raise StageFailed("no exporter can take the model:\n" + "\n".join(f"  {line}" for line in failures))


def _by_program(source: TorchModel, opset: int | None, *, strict: bool, inferred: bool = False) -> ir.Model:
    import torch

    dims: dict[str, Any] = {
        name: torch.export.Dim.AUTO
        if inferred
        else torch.export.Dim(name, min=axis.minimum, max=max(axis.maximum, axis.minimum + 1, 2))
        for name, axis in source.ranges.items()
    }
    shapes = [
        {axis: dims[axis_name] for axis, axis_name in source.axes.get(name, {}).items()} or None
        for name in source.inputs
    ]
    program = torch.export.export(
        source.module,
        () if source.by_keyword else tuple(source.inputs.values()),
        dict(source.inputs) if source.by_keyword else None,
        dynamic_shapes=dict(zip(source.inputs, shapes, strict=True)) if source.by_keyword else tuple(shapes),
        strict=strict,
    )
    model = _translate(program, opset)
    if source.by_keyword:
        _order_inputs(model, list(source.inputs))
    rename_axes(model, _symbols(model, source))
    return model


def _translate(program: torch.export.ExportedProgram, opset: int | None) -> ir.Model:
    import torch

    result = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    assert result is not None
    return result.model  # type: ignore[no-any-return]


def _by_torchscript(source: TorchModel, opset: int | None) -> ir.Model:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            source.module,
            () if source.by_keyword else tuple(source.inputs.values()),
            str(path),
            kwargs=dict(source.inputs) if source.by_keyword else None,
            dynamo=False,
            input_names=list(source.inputs),
            output_names=list(source.output_names),
            dynamic_axes={name: dict(axes) for name, axes in source.axes.items()},
            opset_version=opset,
        )
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    return model


def _order_inputs(model: ir.Model, names: Sequence[str]) -> None:
    """Put the graph's inputs in the user's order; torch gives them in the order of the signature."""
    by_name = {value.name: value for value in model.graph.inputs}
    if set(by_name) == set(names):
        model.graph.inputs[:] = [by_name[name] for name in names]


def _symbols(model: ir.Model, source: TorchModel) -> dict[str, str]:
    """The exporter's symbol of each dynamic axis, {"s77": "batch"}."""
    found: dict[str, str] = {}
    for value, name in zip(model.graph.inputs, source.inputs, strict=True):
        for axis, axis_name in source.axes.get(name, {}).items():
            if value.shape is not None:
                dim = value.shape[axis]
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    found.setdefault(str(dim.value), axis_name)
    return found


def _reason(error: BaseException) -> str:
    """The innermost cause's first line: exporters wrap it in pages of advice."""
    seen: list[BaseException] = [error]
    while seen[-1].__cause__ is not None and seen[-1].__cause__ not in seen:
        seen.append(seen[-1].__cause__)
    lines = [line.strip() for line in str(seen[-1]).splitlines() if line.strip()]
    if lines and lines[0].startswith("Constraints violated"):  # what is wrong comes in items below
        lines = [line.removeprefix("- ") for line in lines if line.startswith("- ")] or lines
    text = (lines or [""])[0].partition(". ")[0][:300]
    return f"{type(seen[-1]).__name__}: {text}".rstrip(".: ")
