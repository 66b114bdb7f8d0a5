"""The exported graph against the original, at several shapes: an export that baked a size in shows here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from optimize.engines.base import AxisRange, Progress, Session
from optimize.errors import StageFailed, UsageError
from optimize.sources.axes import check_shapes, resized

Arrays = Mapping[str, np.ndarray[Any, Any]]

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-4}
"""Largest relative L2 difference per output type. Rounding error of one operation is 2^-11, 2^-8, 2^-24;
some hundreds of them follow each other in a deep model, in another order than the original's. A float64
output may have passed through float32 inside."""


class CannotCompare(Exception):
    """The graph is valid, but ONNX Runtime's CPU lacks an operator for its types (bfloat16 mostly)."""


def check_export(
    model: ir.Model,
    original: Session,
    examples: Arrays,
    axes: Mapping[str, Mapping[int, str]],
    ranges: Mapping[str, AxisRange],
    progress: Progress,
) -> tuple[Mapping[str, Any], ...]:
    """Compare both at several sizes of the dynamic axes, through ONNX Runtime without graph optimisation.

    Args:
        examples: Example array per input; values of other sizes are drawn from it.
        axes: Input name → axis number → axis name.

    Returns:
        Per shape: {"shape": {"batch": 1}, "output": the worst one, "max_abs": …, "relative_l2": …}.

    Raises:
        StageFailed: When the graph cannot run at a shape, or gives something else.
        UsageError: When the original itself cannot run at a shape.
        CannotCompare: When the graph's types cannot run here.
    """
    require_dynamic(model, axes, examples)
    shapes = check_shapes(ranges)
    results: list[Mapping[str, Any]] = []
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder, original, _open(model, Path(folder)) as runtime:
        for number, sizes in enumerate(shapes):
            progress("check the export against the original", number, len(shapes))
            feeds = {name: resized(example, axes.get(name, {}), sizes, rng) for name, example in examples.items()}
            results.append(_compare(runtime, original, feeds, sizes))
    return tuple(results)


def require_dynamic(model: ir.Model, axes: Mapping[str, Mapping[int, str]], examples: Arrays) -> None:
    """Refuse a graph in which an axis that should be dynamic came out with a fixed size.

    Raises:
        StageFailed: Naming input, axis and size.
    """
    for value in model.graph.inputs:
        for axis, axis_name in axes.get(str(value.name), {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                raise StageFailed(
                    f"export: the exporter fixed axis '{axis_name}' of input '{value.name}' at "
                    f"{value.shape[axis]}.",
                    hint="The module's code depends on that size (a Python number taken from a shape); "
                    "make the axis static, or change the code.",
                )


def _open(model: ir.Model, folder: Path) -> Session:
    from optimize.engines.onnxruntime_session import open_onnx

    path = folder / "model.onnx"
    # Through a file with its weights beside it: one protobuf message holds at most 2 GiB.
    ir.save(model, path, external_data="model.data")
    try:
        return open_onnx(path, optimized=False)
    except (StageFailed, UsageError) as error:
        if "Could not find an implementation" in error.message:
            raise CannotCompare(error.message) from error
        raise StageFailed(f"export: ONNX Runtime refuses the exported model: {error.message}") from error


def _compare(runtime: Session, original: Session, feeds: Arrays, sizes: Mapping[str, int]) -> Mapping[str, Any]:
    where = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the example's shape"
    try:
        expected = original.run(feeds)
    except (StageFailed, UsageError) as error:
        raise UsageError(
            f"the original itself fails at {where}: {error.message}",
            hint="Narrow the axis ranges to what it can take.",
        ) from error
    try:
        got = runtime.run(feeds)
    except (StageFailed, UsageError) as error:
        raise StageFailed(
            f"export: the exported model fails at {where}, the original does not: {error.message}",
            hint="The exporter fixed a size that the module's code takes from a shape.",
        ) from error
    worst: dict[str, Any] = {"shape": dict(sizes), "output": "", "max_abs": 0.0, "relative_l2": 0.0}
    for name, reference in expected.items():
        max_abs, relative = difference(reference, got[name], f"output '{name}' at {where}")
        if not worst["output"] or relative > worst["relative_l2"]:
            worst |= {"output": name, "max_abs": max_abs, "relative_l2": relative}
    return worst


def difference(reference: np.ndarray[Any, Any], got: np.ndarray[Any, Any], where: str) -> tuple[float, float]:
    """Largest absolute and relative L2 difference of two outputs.

    Raises:
        StageFailed: When shapes, NaN or infinities differ, or values beyond the type's tolerance.
    """
    if reference.shape != got.shape:
        raise StageFailed(
            f"export: {where} has shape {list(got.shape)}, the original's {list(reference.shape)}.",
            hint="The exporter fixed a size that the module's code takes from a shape.",
        )
    limit = TOLERANCE.get(reference.dtype.name, 0.0)
    a, b = reference.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        raise StageFailed(f"export: {where} has NaN or infinities where the original has others.")
    delta, norm = a[finite] - b[finite], float(np.linalg.norm(a[finite]))
    max_abs = float(np.abs(delta).max(initial=0.0))
    distance = float(np.linalg.norm(delta))
    relative = distance / norm if norm else (0.0 if distance <= 1e-6 else float("inf"))
    if relative > limit:
        raise StageFailed(
            f"export: {where} differs from the original: relative L2 {relative:.2g}, at most {limit:.0e} "
            f"expected (largest difference {max_abs:.2g}).",
            hint="Does the module draw random numbers, or branch on values or sizes?",
        )
    return max_abs, relative
