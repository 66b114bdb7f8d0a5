"""Models named on a command line: opening them, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimize.engines.base import AxisRange, Session, TensorSpec
    from optimize.evaluate.batch import Batch

PLANS = (".plan", ".engine", ".trt")
GRAPHS = (".onnx", ".ort")

LARGEST_SIZE = 2**31 - 1
"""Of an axis; engines count in 32 bits."""


def is_model(path: Path) -> bool:
    """Whether a file's name is that of a model or an engine."""
    return path.suffix in (*PLANS, *GRAPHS)


def open_model(path: Path, threads: int | None) -> Session:
    """Open an ONNX file or an engine.

    Raises:
        UsageError: When there is no such file, or it is neither.
    """
    from optimize.engines import registry
    from optimize.errors import UsageError

    if not path.exists():
        raise UsageError(f"there is no file '{path}'.")
    if path.suffix in PLANS:
        return registry.create({"kind": "tensorrt"}).open(path)
    if path.suffix in GRAPHS:
        return registry.create({"kind": "onnxruntime", **({"threads": threads} if threads else {})}).open(path)
    raise UsageError(f"'{path}' is no .onnx, .ort or .plan file.")


def sizes_of(given: Sequence[str] | None) -> dict[str, int]:
    """["tokens=128"] → {"tokens": 128}.

    Raises:
        UsageError: When one has another form.
    """
    from optimize.errors import UsageError

    found = {}
    for item in given or ():
        axis, _, size = item.partition("=")
        if not axis or not size.isdecimal() or not 1 <= int(size) <= LARGEST_SIZE:
            raise UsageError(f"--size: expected AXIS=N, a whole number from 1 to {LARGEST_SIZE:,}, got '{item}'.")
        found[axis] = int(size)
    return found


def batch_axis(inputs: Sequence[TensorSpec]) -> str | None:
    """The name of the dynamic axis that counts samples: axis 0 of the first input."""
    first = next((spec for spec in inputs if spec.shape), None)
    return first.shape[0] if first is not None and isinstance(first.shape[0], str) else None


def axis_ranges(inputs: Sequence[TensorSpec], sizes: Mapping[str, int], absent: int) -> dict[str, AxisRange]:
    """A fixed range for every dynamic axis: its size as given, else `absent`.

    Raises:
        UsageError: When a size is given for an axis that no input has.
    """
    from optimize.engines.base import AxisRange
    from optimize.errors import UsageError

    axes = dict.fromkeys(axis for spec in inputs for axis in spec.shape if isinstance(axis, str))
    for axis in sizes:
        if axis not in axes:
            raise UsageError(f"--size: no input has an axis '{axis}'; there are: {', '.join(axes) or 'none'}.")
    return {axis: AxisRange(size, size, size) for axis in axes for size in [sizes.get(axis, absent)]}


def batches_for(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    data: str | None,
    labels: str | None,
    samples: int | None,
    sizes: Mapping[str, int],
    absent: int,
) -> Iterator[Batch]:
    """Batches from `data`, or random ones; random indices stay inside the tables of an ONNX file at `path`."""
    from optimize.evaluate import feeds, index_limits

    limits = None
    if data is None and path.suffix == ".onnx":
        from optimize.sources import onnx_load

        limits = index_limits.index_limits(onnx_load.load_onnx(path))
    axis = batch_axis(inputs)
    ranges = {} if data is not None else axis_ranges(inputs, sizes, absent)
    fixed = next((spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    batch = ranges[axis].typical if axis in ranges else fixed or sizes.get(axis or "", absent)
    return feeds.load_batches(
        data if data is not None else "random",
        samples=samples if samples is not None or data is not None else batch,
        batch=batch,
        arguments={},
        base=Path.cwd(),
        inputs=inputs,
        ranges=ranges,
        labels=labels,
        seed=0,
        limits=limits,
    )
