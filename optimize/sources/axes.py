"""Dynamic axes: their ranges, and example inputs resized to other shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimize.engines.base import AxisRange
from optimize.errors import UsageError

RangeLike = AxisRange | Mapping[str, int] | Sequence[int]
"""A range as users and recipes write it: (1, 8, 64), {"minimum": 1, …}, or the type itself."""

ASSUMED_FIRST = AxisRange(1, 8, 64)
"""Range of a dynamic axis 0 that nobody gave one."""

ASSUMED_OTHER = AxisRange(1, 128, 512)
"""Range of any other dynamic axis that nobody gave one."""


def axis_range(name: str, value: RangeLike) -> AxisRange:
    """Read one range and check it.

    Raises:
        UsageError: When it is not three whole numbers 1 ≤ minimum ≤ typical ≤ maximum.
    """
    if isinstance(value, AxisRange):
        numbers: list[Any] = [value.minimum, value.typical, value.maximum]
    elif isinstance(value, Mapping):
        numbers = [value.get(key) for key in ("minimum", "typical", "maximum")]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        numbers = list(value)
    else:
        numbers = []
    whole = len(numbers) == 3 and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    if not whole or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise UsageError(
            f"range of axis '{name}': expected (minimum, typical, maximum), whole numbers in that order "
            f"from 1 on, got {value!r}."
        )
    return AxisRange(*numbers)


def axis_ranges(ranges: Mapping[str, RangeLike]) -> dict[str, AxisRange]:
    """Read ranges by axis name.

    Raises:
        UsageError: As `axis_range`.
    """
    return {name: axis_range(name, value) for name, value in ranges.items()}


def check_shapes(ranges: Mapping[str, AxisRange]) -> list[dict[str, int]]:
    """Sizes per axis at which an export is compared: all minimal, all typical, each maximal on its own.

    All axes at their maximum at once is left out: it costs memory and shows nothing that one at a time
    does not.
    """
    smallest = {name: axis.minimum for name, axis in ranges.items()}
    shapes = [smallest, {name: axis.typical for name, axis in ranges.items()}]
    shapes += [{**smallest, name: axis.maximum} for name, axis in ranges.items()]
    unique: list[dict[str, int]] = []
    for shape in shapes:
        if shape not in unique:
            unique.append(shape)
    return unique


def resized(
    example: np.ndarray[Any, Any],
    axes: Mapping[int, str],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """An input of another size whose values are drawn from the example's, so that they stay meaningful.

    Args:
        example: Any dtype.
        axes: Axis number → axis name, for the dynamic ones.
        sizes: Axis name → size.
        rng: Draws the values.

    Returns:
        An array of the example's dtype. Real numbers are scaled by 0.5 to 1.5 each, zeros alone become normal
        noise: equal rows would hide a model that mixes them up, and the example's own numbers one that froze them.
    """
    shape = tuple(sizes[axes[axis]] if axis in axes else size for axis, size in enumerate(example.shape))
    if example.size == 0:
        return np.zeros(shape, example.dtype)
    flat = example.reshape(-1)
    drawn = flat[rng.integers(0, flat.size, size=shape)]
    if example.dtype.kind == "f" or example.dtype.name == "bfloat16":
        scale = rng.uniform(0.5, 1.5, shape) if flat.any() else rng.standard_normal(shape)
        drawn = (drawn.astype(np.float64) * scale if flat.any() else scale).astype(example.dtype)
    return np.ascontiguousarray(drawn)
