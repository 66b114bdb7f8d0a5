"""An ONNX file, external data beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir

from optimize.engines.base import AxisRange, Progress, Session
from optimize.errors import OptimizeError, UsageError
from optimize.sources.axes import ASSUMED_FIRST, ASSUMED_OTHER, RangeLike, axis_ranges
from optimize.sources.base import Capture
from optimize.sources.graph_specs import specs
from optimize.sources.onnx_load import external_tensors, load_onnx, refuse_nan


class OnnxSource:
    """A file in protobuf form; its weights are mapped, never copied.

    Args:
        path: The file, relative to `base`.
        ranges: Axis name → range.
        base: Folder that a relative path starts from.
    """

    kind: ClassVar[str] = "onnx"

    def __init__(self, *, path: str, ranges: Mapping[str, RangeLike] | None = None, base: Path = Path()) -> None:
        self._path, self._ranges = base / path, dict(ranges or {})

    def check(self) -> str | None:
        try:
            self.files()
        except OptimizeError as error:
            return str(error)
        return None

    def files(self) -> tuple[Path, ...]:
        """The file and its data files."""
        model = load_onnx(self._path)
        data = sorted({Path(tensor.path) for tensor in external_tensors(model)})
        return (self._path, *data)

    def capture(self, progress: Progress) -> Capture:
        progress(f"read {self._path.name}", 0, 0)
        model = load_onnx(self._path)
        refuse_nan(model, f"'{self._path.name}'", progress)
        notes = [*_drop_weight_inputs(model), *_name_axes(model)]
        _infer_missing_output_types(model)
        inputs, outputs = specs(model.graph.inputs), specs(model.graph.outputs)
        if not outputs:
            raise UsageError(f"'{self._path.name}' has no outputs.")
        ranges, assumed = self._axis_ranges(model)
        return Capture(
            model=model,
            inputs=inputs,
            outputs=outputs,
            ranges=ranges,
            exporter=_made_by(model),
            notes=(*notes, *assumed),
        )

    def original(
        self, *, threads: int | None = None, compiled: bool = False, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Session:
        if compiled:
            raise UsageError("contender 'compiled' needs a PyTorch source; the source is an ONNX file.")
        from optimize.engines.onnxruntime_session import open_onnx

        load_onnx(self._path)
        # Unoptimised: ONNX Runtime's own rewriting silently changes some quantized graphs' results.
        return open_onnx(self._path, optimized=False, threads=threads)

    def _axis_ranges(self, model: ir.Model) -> tuple[dict[str, AxisRange], list[str]]:
        named: dict[str, int] = {}
        for value in model.graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    named.setdefault(str(dim.value), axis)
        ranges = axis_ranges(self._ranges)
        for name in ranges:
            if name not in named:
                raise UsageError(
                    f"ranges: the model's inputs have no dynamic axis '{name}'; "
                    f"they have: {', '.join(named) or 'none'}."
                )
        notes = []
        for name, axis in named.items():
            if name not in ranges:
                assumed = ranges[name] = ASSUMED_FIRST if axis == 0 else ASSUMED_OTHER
                notes.append(
                    f"Axis '{name}' has no range; {assumed.minimum} to {assumed.maximum}, "
                    f"typically {assumed.typical}, is assumed."
                )
        return ranges, notes


def _drop_weight_inputs(model: ir.Model) -> list[str]:
    """Old files list weights among the inputs; they are constants to everyone else."""
    weights = [value for value in model.graph.inputs if value.is_initializer()]
    if not weights:
        return []
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs[:] = kept
    return [f"{len(weights)} inputs with a stored value are taken as constants."]


def _name_axes(model: ir.Model) -> list[str]:
    """Give unnamed dynamic axes of inputs a name, so that they can have a range; axis 0 is the batch's."""
    named: list[str] = []
    for value in model.graph.inputs:
        if value.shape is None:
            raise UsageError(f"input '{value.name}' has no shape in the ONNX file.")
        dims: list[int | str | None] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim) and not dim.value:
                name = "batch" if axis == 0 else f"{value.name}_axis_{axis}"
                named.append(f"axis {axis} of '{value.name}' is called '{name}'")
                dims.append(name)
            else:
                dims.append(dim if isinstance(dim, int) else dim.value)
        value.shape = ir.Shape(dims)
    return [f"Dynamic axes without a name: {', '.join(named)}."] if named else []


def _infer_missing_output_types(model: ir.Model) -> None:
    """Files may leave the type of an output open; ONNX's own inference fills it in."""
    if all(value.shape is not None and value.dtype is not None for value in model.graph.outputs):
        return
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)


def _made_by(model: ir.Model) -> str:
    made_by = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return f"ONNX file made by {made_by}" if made_by else "ONNX file"
