"""Random inputs that fit a model's declared inputs, for runs where no real sample is at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers its types with NumPy)
import numpy as np

from optimize.engines.base import AxisRange, TensorSpec

UNKNOWN_AXIS = 2
"""Size of an axis about which nothing is known."""


def random_feeds(
    inputs: Sequence[TensorSpec], ranges: Mapping[str, AxisRange], rng: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    """One array per input: normal numbers for floats, 0 and 1 for integers and booleans.

    Integers are small because they mostly index tables of unknown length or mask positions; the first
    entry of the last axis is 1, so that no row of a mask is empty.

    Args:
        inputs: The model's inputs.
        ranges: Sizes of named axes; the typical size is taken.
        rng: Where the numbers come from.
    """
    return {spec.name: _array(spec, ranges, rng) for spec in inputs}


def _array(spec: TensorSpec, ranges: Mapping[str, AxisRange], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = tuple(_size(axis, ranges) for axis in spec.shape)
    if spec.dtype == "bool" or "int" in spec.dtype:
        array = rng.integers(0, 2, shape).astype(spec.dtype)
        if array.size and array.ndim:
            array[..., 0] = 1
        return array
    return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)


def _size(axis: int | str | None, ranges: Mapping[str, AxisRange]) -> int:
    if isinstance(axis, int):
        return axis
    if axis is not None and axis in ranges:
        return ranges[axis].typical
    return UNKNOWN_AXIS
