"""A run's inputs and outputs in Triton's terms: data types, dims without the batch, sizes to warm up with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from optimize.errors import UsageError
from optimize.report.model import Report

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float": "TYPE_FP32",
    "float32": "TYPE_FP32",
    "double": "TYPE_FP64",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}
"""Triton's `DataType` of each dtype, as reports spell it."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
        shape: With the batch axis; a name per dynamic axis.
        dims: Without the batch axis when the model is batched; -1 per dynamic axis.
        typical: `dims` with the size that dynamic axes typically have.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    dims: tuple[int, ...]
    typical: tuple[int, ...]

    @property
    def data_type(self) -> str:
        """Triton's name of the dtype."""
        return TYPES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a model takes and gives.

    Attributes:
        max_batch: Largest batch; 0 when the first axis is no batch.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int


def interface(report: Report, max_batch: int | None) -> Interface:
    """Read a model's interface off its report.

    Raises:
        UsageError: When a data type has no counterpart, or nobody says how large a batch may be.
    """
    assert report.optimized is not None
    ranges: Mapping[str, Mapping[str, int]] = report.source.get("ranges", {})
    described = [*report.optimized.inputs, *report.optimized.outputs]
    for item in described:
        if item["dtype"] not in TYPES:
            raise UsageError(f"'{item['name']}' is {item['dtype']}, which Triton has no type for.")
    batch_axes = {item["shape"][0] if item["shape"] else None for item in described}
    axis = next(iter(batch_axes)) if len(batch_axes) == 1 else None
    largest = 0
    if isinstance(axis, str):
        known = ranges.get(axis, {}).get("maximum")
        if max_batch is None and known is None:
            raise UsageError(f"nobody says how large axis '{axis}' may be.", hint="Give --max-batch.")
        if max_batch is not None and known is not None and max_batch > known:
            raise UsageError(f"--max-batch {max_batch}: the engine takes at most {known}.")
        largest = max_batch or int(known or 1)
    elif max_batch:
        raise UsageError("--max-batch: the first axis of inputs and outputs is not one dynamic axis.")
    tensors = [_tensor(item, ranges, is_batched=largest > 0) for item in described]
    count = len(report.optimized.inputs)
    return Interface(tuple(tensors[:count]), tuple(tensors[count:]), largest)


def _tensor(item: Mapping[str, Any], ranges: Mapping[str, Mapping[str, int]], *, is_batched: bool) -> Tensor:
    shape = tuple(item["shape"])
    inner = shape[1:] if is_batched else shape
    return Tensor(
        name=item["name"],
        dtype=item["dtype"],
        shape=shape,
        dims=tuple(dim if isinstance(dim, int) else -1 for dim in inner),
        typical=tuple(
            dim if isinstance(dim, int) else int(ranges.get(str(dim), {}).get("typical", 16)) for dim in inner
        ),
    )


def example(tensor: Tensor) -> np.ndarray[Any, Any]:
    """An input without its batch axis to warm up and to time with: ones, which are valid indices and masks."""
    names = {"float": "float32", "double": "float64"}
    return np.ones(tensor.typical, dtype=names.get(tensor.dtype, tensor.dtype))
