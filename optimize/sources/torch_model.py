"""A PyTorch module with what is needed to export it: example inputs, dynamic axes, names, ranges."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from optimize.engines.base import AxisRange, Session, TensorSpec
from optimize.errors import UsageError
from optimize.sources.axes import ASSUMED_FIRST, ASSUMED_OTHER, RangeLike, axis_ranges
from optimize.sources.torch_tensors import dtype_name, flat_outputs

if TYPE_CHECKING:
    import torch

KEYS = ("module", "inputs", "dynamic_axes", "output_names", "ranges")
"""What a factory returns; the first two are required."""


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """A module ready to be exported.

    Attributes:
        module: In evaluation mode.
        inputs: Example tensor per input name, in the model's order; dynamic axes have at least 2 elements and lie
            within their range.
        axes: Input name → axis number → axis name.
        ranges: Range of every axis named in `axes`.
        output_names: One per tensor the module returns.
        notes: Full sentences (an assumed range).
    """

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    axes: Mapping[str, Mapping[int, str]]
    ranges: Mapping[str, AxisRange]
    output_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def by_keyword(self) -> bool:
        """Whether inputs go to `forward` by name: when every name is one of its parameters."""
        parameters = inspect.signature(self.module.forward).parameters
        return all(name in parameters for name in self.inputs)

    def call(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Run the module on tensors by input name."""
        return self.module(**tensors) if self.by_keyword else self.module(*tensors.values())

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """Inputs with their dynamic axes by name."""
        return tuple(
            TensorSpec(
                name,
                dtype_name(tensor.dtype),
                tuple(self.axes.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)),
            )
            for name, tensor in self.inputs.items()
        )

    def session(
        self,
        outputs: tuple[TensorSpec, ...] = (),
        *,
        threads: int | None = None,
        compiled: bool = False,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> Session:
        """The original, to be compared with; shapes of outputs are unknown unless given."""
        import torch

        from optimize.engines.torch import TorchOptions, TorchSession

        if not outputs:
            with torch.no_grad():
                flat = flat_outputs(self.call(self.inputs))
            outputs = tuple(
                TensorSpec(name, dtype_name(tensor.dtype), (None,) * tensor.ndim)
                for name, (_, tensor) in zip(self.output_names, flat, strict=True)
            )
        reached = device if torch.cuda.is_available() else "cpu"
        options = TorchOptions(compiled=compiled, threads=threads, device=reached)
        return TorchSession(self.module, self.input_specs(), outputs, options, by_keyword=self.by_keyword)


def torch_model(built: Any, given_ranges: Mapping[str, RangeLike], *, what: str) -> TorchModel:
    """Check what a factory returned and complete it.

    Args:
        built: {"module", "inputs", "dynamic_axes", "output_names", "ranges"}.
        given_ranges: From the recipe; they win over the factory's.
        what: How to call the factory in messages.

    Raises:
        UsageError: For the first thing that is wrong, in one sentence.
    """
    import torch

    if not isinstance(built, Mapping):
        raise UsageError(f"{what} must return a dict with {', '.join(KEYS)}; got {type(built).__name__}.")
    for key in built:
        if key not in KEYS:
            raise UsageError(f"{what}: unknown key '{key}' in what it returns; known: {', '.join(KEYS)}.")
    module = built.get("module")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{what}: 'module' must be a torch.nn.Module; got {type(module).__name__}.")
    inputs = _inputs(built.get("inputs"), what)
    axes = _axes(built.get("dynamic_axes") or {}, inputs, what)
    named = {name: axis for per_input in axes.values() for axis, name in per_input.items()}
    ranges, notes = _ranges(built.get("ranges") or {}, given_ranges, named, what)
    inputs = {name: _traceable(tensor, axes.get(name, {}), ranges) for name, tensor in inputs.items()}
    module = module.eval()
    draft = TorchModel(module, inputs, axes, ranges, (), notes)
    return named_outputs(draft, built.get("output_names"), what)


def _inputs(value: Any, what: str) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"{what}: 'inputs' must be a dict of example tensors by input name.")
    for name, tensor in value.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"{what}: an input's name must be a text; got {name!r}.")
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{what}: input '{name}' must be a tensor; got {type(tensor).__name__}.")
        if tensor.numel() == 0:
            raise UsageError(f"{what}: example input '{name}' is empty (shape {list(tensor.shape)}).")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"{what}: example input '{name}' holds NaN or infinite values.")
    return dict(value)


def _axes(value: Any, inputs: Mapping[str, torch.Tensor], what: str) -> dict[str, dict[int, str]]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{what}: 'dynamic_axes' must be {{input: {{axis: name}}}}.")
    axes: dict[str, dict[int, str]] = {}
    for name, per_input in value.items():
        if name not in inputs:
            raise UsageError(f"{what}: dynamic_axes names '{name}', no input; inputs are: {', '.join(inputs)}.")
        if not isinstance(per_input, Mapping):
            raise UsageError(f"{what}: dynamic_axes of '{name}' must be {{axis: name}}; got {per_input!r}.")
        rank = inputs[name].ndim
        for axis, axis_name in per_input.items():
            if not isinstance(axis, int) or not -rank <= axis < rank:
                raise UsageError(
                    f"{what}: dynamic_axes of '{name}': there is no axis {axis!r}; "
                    f"its shape is {list(inputs[name].shape)}."
                )
            if not isinstance(axis_name, str) or not axis_name.isidentifier():
                raise UsageError(
                    f"{what}: dynamic_axes of '{name}': an axis needs a name such as \"batch\"; got {axis_name!r}."
                )
            axes.setdefault(name, {})[axis % rank] = axis_name
    _agree(axes, inputs, what)
    return axes


def _agree(axes: Mapping[str, Mapping[int, str]], inputs: Mapping[str, torch.Tensor], what: str) -> None:
    sizes: dict[str, tuple[str, int]] = {}
    for name, per_input in axes.items():
        for axis, axis_name in per_input.items():
            size = int(inputs[name].shape[axis])
            other, expected = sizes.setdefault(axis_name, (name, size))
            if size != expected:
                raise UsageError(
                    f"{what}: axis '{axis_name}' is {expected} in example input '{other}' and {size} in '{name}'."
                )


def _ranges(
    built: Any, given: Mapping[str, RangeLike], named: Mapping[str, int], what: str
) -> tuple[dict[str, AxisRange], tuple[str, ...]]:
    if not isinstance(built, Mapping):
        raise UsageError(f"{what}: 'ranges' must be {{axis name: (minimum, typical, maximum)}}.")
    ranges = axis_ranges({**built, **given})
    for name in ranges:
        if name not in named:
            raise UsageError(
                f"{what}: there is a range for axis '{name}', which no input has; "
                f"dynamic axes: {', '.join(named) or 'none'}."
            )
    notes = []
    for name, axis in named.items():
        if name not in ranges:
            assumed = ranges[name] = ASSUMED_FIRST if axis == 0 else ASSUMED_OTHER
            notes.append(
                f"Axis '{name}' has no range; {assumed.minimum} to {assumed.maximum}, "
                f"typically {assumed.typical}, is assumed."
            )
    return ranges, tuple(notes)


def _traceable(tensor: torch.Tensor, axes: Mapping[int, str], ranges: Mapping[str, AxisRange]) -> torch.Tensor:
    """Repeat or cut dynamic axes of size 1 or outside their range: exporters take a 1 for a constant."""
    import torch

    for axis, name in axes.items():
        size, limits = tensor.shape[axis], ranges[name]
        if size == 1 or not limits.minimum <= size <= limits.maximum:
            tensor = tensor.index_select(axis, torch.arange(max(2, limits.typical)) % size)
    return tensor


def named_outputs(model: TorchModel, value: Any, what: str) -> TorchModel:
    """Give a model names for its outputs: the user's list, or names made from keys of what it returns.

    Raises:
        UsageError: When the list does not fit, names repeat, or the module cannot run on its examples.
    """
    import torch

    from optimize.user_code import errors_of_user

    with errors_of_user(None, what=f"{what}: the module cannot run on its example inputs"), torch.no_grad():
        flat = flat_outputs(model.call(model.inputs))
    if value is None:
        names = tuple(
            key or ("output" if len(flat) == 1 else f"output_{index}") for index, (key, _) in enumerate(flat)
        )
    else:
        if isinstance(value, str) or not all(isinstance(name, str) and name for name in value):
            raise UsageError(f"{what}: 'output_names' must be a list of names; got {value!r}.")
        names = tuple(value)
    if len(names) != len(flat):
        raise UsageError(
            f"{what}: output_names has {len(names)} ({', '.join(names)}), the module returns {len(flat)}."
        )
    for names_of, kind in ((names, "output"), ((*names, *model.inputs), "input or output")):
        repeated = sorted({name for name in names_of if names_of.count(name) > 1})
        if repeated:
            raise UsageError(f"{what}: '{repeated[0]}' is the name of more than one {kind}.")
    return dataclasses.replace(model, output_names=names)
