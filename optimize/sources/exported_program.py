"""A program saved by `torch.export.save` (.pt2)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx_ir as ir

from optimize.engines.base import AxisRange, Progress, Session
from optimize.errors import UsageError
from optimize.sources.axes import ASSUMED_FIRST, ASSUMED_OTHER, RangeLike, axis_ranges
from optimize.sources.base import Capture
from optimize.sources.pt2 import load_pt2
from optimize.sources.torch_capture import checked
from optimize.sources.torch_export import export_program
from optimize.sources.torch_model import TorchModel, named_outputs

if TYPE_CHECKING:
    import torch


class ExportedProgramSource:
    """A `.pt2` file.

    The file keeps neither input names of its own choice nor names of dynamic axes: inputs are called like
    the arguments of the module that was exported, axis 0 "batch", another axis "<input>_axis_<number>".

    Args:
        path: The file, relative to `base`.
        opset: Opset to export at; None leaves the exporter's own choice.
        ranges: Axis name → range; within what the program allows.
        input_names: Names for its inputs, in order; those of the file if empty.
        output_names: Names for its outputs, in order; "output" or "output_0", … if empty.
        base: Folder that a relative path starts from.
        allow_pickle: Load a file that holds pickles, which runs code from it.
    """

    kind: ClassVar[str] = "exported_program"

    def __init__(
        self,
        *,
        path: str,
        opset: int | None = None,
        ranges: Mapping[str, RangeLike] | None = None,
        input_names: Sequence[str] = (),
        output_names: Sequence[str] = (),
        base: Path = Path(),
        allow_pickle: bool = False,
    ) -> None:
        self._path, self._opset, self._ranges = base / path, opset, dict(ranges or {})
        self._input_names, self._output_names = tuple(input_names), tuple(output_names)
        self._allow_pickle = allow_pickle
        self._loaded: tuple[torch.export.ExportedProgram, TorchModel] | None = None

    def check(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return 'PyTorch is not installed. Install it with: pip install "model-optimize[torch]"'
        return None if self._path.is_file() else f"there is no file '{self._path}'."

    def files(self) -> tuple[Path, ...]:
        return (self._path,)

    def capture(self, progress: Progress) -> Capture:
        progress(f"load {self._path.name}", 0, 0)
        program, model = self._load()
        exported = export_program(
            program,
            self._opset,
            list(model.inputs),
            model.output_names,
            lambda graph: _symbols(graph, model.axes, list(model.inputs)),
            progress,
        )
        return checked(model, exported, progress)

    def original(
        self, *, threads: int | None = None, compiled: bool = False, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Session:
        return self._load()[1].session(threads=threads, compiled=compiled, device=device)

    def _load(self) -> tuple[torch.export.ExportedProgram, TorchModel]:
        if self._loaded is None:
            program = load_pt2(self._path, allow_pickle=self._allow_pickle)
            self._loaded = (program, self._model(program))
        return self._loaded

    def _model(self, program: torch.export.ExportedProgram) -> TorchModel:
        what = f"'{self._path.name}'"
        names = [str(name) for name in program.graph_signature.user_inputs]
        if self._input_names:
            if len(self._input_names) != len(names):
                raise UsageError(
                    f"{what} has {len(names)} inputs ({', '.join(names)}); input_names has "
                    f"{len(self._input_names)} ({', '.join(self._input_names)})."
                )
            names = list(self._input_names)
        examples, axes, symbols = _inputs(program, names, what)
        ranges, notes = self._axis_ranges(program, axes, symbols, examples)
        module = flat_module(program)
        draft = TorchModel(module, examples, axes, ranges, (), notes)
        return named_outputs(draft, list(self._output_names) or None, what)

    def _axis_ranges(
        self,
        program: torch.export.ExportedProgram,
        axes: Mapping[str, Mapping[int, str]],
        symbols: Mapping[str, str],
        examples: Mapping[str, torch.Tensor],
    ) -> tuple[dict[str, AxisRange], tuple[str, ...]]:
        given = axis_ranges(self._ranges)
        for name in given:
            if name not in symbols.values():
                raise UsageError(
                    f"ranges: the program has no dynamic axis '{name}'; "
                    f"it has: {', '.join(sorted(set(symbols.values()))) or 'none'}."
                )
        allowed = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
        ranges: dict[str, AxisRange] = {}
        notes: list[str] = []
        for symbol, name in symbols.items():
            assumed = ASSUMED_FIRST if name == "batch" else ASSUMED_OTHER
            lowest, highest = _limits(allowed.get(symbol), assumed)
            chosen = given.get(name)
            if chosen and (chosen.minimum < lowest or chosen.maximum > highest):
                raise UsageError(
                    f"ranges: axis '{name}' asks for {chosen.minimum} to {chosen.maximum}, the program was "
                    f"exported for {lowest} to {highest}."
                )
            if not chosen:
                chosen = AxisRange(lowest, min(max(assumed.typical, lowest), highest), highest)
                notes.append(
                    f"Axis '{name}' has no range; {chosen.minimum} to {chosen.maximum}, "
                    f"typically {chosen.typical}, is assumed."
                )
            ranges[name] = chosen
        return ranges, tuple(notes)


def _limits(constraint: Any, assumed: AxisRange) -> tuple[int, int]:
    """What a program allows for a symbol; an open end is where the assumed range ends."""
    try:
        lowest = int(constraint.lower)
    except (AttributeError, OverflowError, TypeError):
        lowest = assumed.minimum
    try:
        highest = int(constraint.upper)
    except (AttributeError, OverflowError, TypeError):
        highest = assumed.maximum
    lowest = max(lowest, 1)
    return lowest, max(highest if highest < 2**31 else assumed.maximum, lowest)


def _inputs(
    program: torch.export.ExportedProgram, names: Sequence[str], what: str
) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]], dict[str, str]]:
    """Example tensors and dynamic axes by input name, and the axis name of each symbol."""
    import torch

    user_inputs = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in user_inputs]
    given = (
        torch.utils._pytree.tree_leaves(program.example_inputs) if program.example_inputs else [None] * len(nodes)
    )
    examples: dict[str, torch.Tensor] = {}
    axes: dict[str, dict[int, str]] = {}
    symbols: dict[str, str] = {}
    for name, node, example in zip(names, nodes, given, strict=True):
        fake = node.meta.get("val")
        if not isinstance(fake, torch.Tensor):
            raise UsageError(f"{what}: input '{name}' is a {type(fake).__name__}; expected a tensor.")
        sizes = []
        for axis, size in enumerate(fake.shape):
            if isinstance(size, int):
                sizes.append(size)
                continue
            symbol = str(size.node.expr)
            if not symbol.isidentifier():
                raise UsageError(
                    f"{what}: axis {axis} of input '{name}' is tied to another ({symbol}).",
                    hint="Export the program with independent dynamic axes.",
                )
            first = "batch" if axis == 0 and "batch" not in symbols.values() else f"{name}_axis_{axis}"
            axes.setdefault(name, {})[axis] = symbols.setdefault(symbol, first)
            sizes.append(2)
        kept = isinstance(example, torch.Tensor)
        examples[name] = example if kept else torch.ones(sizes, dtype=fake.dtype)
    return examples, axes, symbols


def _symbols(graph: ir.Model, axes: Mapping[str, Mapping[int, str]], inputs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value, name in zip(graph.graph.inputs, inputs, strict=True):
        for axis, axis_name in axes.get(name, {}).items():
            dim = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(str(dim.value), axis_name)
    return found


def flat_module(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """A module that takes the program's inputs as tensors in order, however they were nested."""
    import torch

    unlifted = program.module()
    structure = program.call_spec.in_spec

    class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is opaque to the type checker
        def forward(self, *tensors: torch.Tensor) -> Any:
            arguments, keywords = torch.utils._pytree.tree_unflatten(list(tensors), structure)
            return unlifted(*arguments, **keywords)

    # `unlifted` stays outside the module tree: an exported program refuses to be put into evaluation mode.
    return Flat()
