"""Items as they come, single samples or batches, made into checked batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from optimize.engines.base import AxisRange, TensorSpec
from optimize.errors import UsageError
from optimize.evaluate.batch import Array, Batch, batched_inputs

Item = tuple[str, Mapping[str, Any], bool]
"""Where it comes from ("item 3", "part.npz"), its arrays, and whether they are to be cut into batches."""


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How items become batches for a model.

    Attributes:
        inputs: The model's inputs.
        ranges: Range of every dynamic axis.
        labels: Name of the array of class labels, or None.
        batch: Samples per batch when they are put together or cut.
        what: How to call the data in messages.
    """

    inputs: Sequence[TensorSpec]
    ranges: Mapping[str, AxisRange]
    labels: str | None
    batch: int
    what: str

    def batches(self, items: Iterable[Item], samples: int | None) -> Iterator[Batch]:
        """Checked batches, at most `samples` samples in all.

        Raises:
            UsageError: When an item does not fit the inputs, or there is none.
        """
        taken = 0
        waiting: list[dict[str, Array]] = []
        for where, item, cut in items:
            arrays = self._arrays(where, item)
            single = self._is_single(arrays, where)
            if not single:
                yield from self._together(waiting)
                waiting = []
                for whole in self._cut(arrays) if cut else [arrays]:
                    made = self._batch(whole, where)
                    if samples is not None and not isinstance(self._axis, int):
                        made = _first(made, samples - taken, self._batched)
                    taken += made.size
                    yield made
                    if samples is not None and taken >= samples:
                        return
                continue
            if waiting and (_shapes(waiting[0]) != _shapes(arrays) or not self._same_shared(waiting[0], arrays)):
                yield from self._together(waiting)
                waiting = []
            waiting.append(arrays)
            taken += 1
            if len(waiting) == self._size or taken == samples:
                yield from self._together(waiting)
                waiting = []
            if taken == samples:
                return
        yield from self._together(waiting)
        if not taken:
            raise UsageError(f"{self.what} holds no samples.", hint="Give at least one.")

    @property
    def _batched(self) -> tuple[str, ...]:
        return batched_inputs(self.inputs)

    @property
    def _size(self) -> int:
        """Samples per batch: the recipe's number, within what the model takes."""
        dim = self._axis
        if isinstance(dim, int):
            return dim
        limit = self.ranges.get(dim or "")
        return min(max(self.batch, limit.minimum), limit.maximum) if limit else self.batch

    @property
    def _axis(self) -> int | str | None:
        """Size or name of the axis that counts samples."""
        batched = self._batched
        return next((spec.shape[0] for spec in self.inputs if spec.name in batched), None)

    def _arrays(self, where: str, item: Mapping[str, Any]) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for name, value in item.items():
            if not hasattr(value, "__array__") and not isinstance(value, list | tuple | int | float | bool):
                raise UsageError(f"{self.what}, {where}: '{name}' is a {type(value).__name__}, not an array.")
            arrays[str(name)] = np.asarray(value)
        known = {spec.name: spec for spec in self.inputs}
        for name in arrays:
            if name not in known and name != self.labels:
                raise UsageError(
                    f"{self.what}, {where}: no input is called '{name}'; the model has: {', '.join(known)}.",
                    hint="" if self.labels else f"If it holds class labels, say so: labels: {name}",
                )
        missing = [name for name in (*known, *([self.labels] if self.labels else [])) if name not in arrays]
        if missing:
            raise UsageError(
                f"{self.what}, {where}: '{missing[0]}' is missing; given: {', '.join(arrays) or 'nothing'}."
            )
        for name, spec in known.items():
            arrays[name] = self._typed(arrays[name], spec, where)
        return arrays

    def _typed(self, array: Array, spec: TensorSpec, where: str) -> Array:
        if array.dtype.kind == "V" and hasattr(ml_dtypes, spec.dtype):
            kind = np.dtype(getattr(ml_dtypes, spec.dtype))
            if kind.itemsize == array.dtype.itemsize:  # .npz files keep such types as raw bytes
                array = array.view(kind)
        if array.dtype.name != spec.dtype and not (array.dtype.kind in "OU" and spec.dtype in ("str", "object")):
            raise UsageError(
                f"{self.what}, {where}: input '{spec.name}' expects {spec.dtype}, got {array.dtype.name}.",
                hint=f"Convert it: array.astype(np.{spec.dtype})" if spec.dtype.isidentifier() else "",
            )
        is_real = array.dtype.kind == "f" or (array.dtype.kind == "V" and array.dtype.itemsize >= 1)
        if is_real and bool(np.isnan(array).any()):
            index = np.argwhere(np.isnan(array))[0].tolist()
            raise UsageError(f"{self.what}, {where}: input '{spec.name}' holds NaN at {index}.")
        return array

    def _is_single(self, arrays: Mapping[str, Array], where: str) -> bool:
        """Whether the item is one sample: every batched input is one axis short."""
        found: dict[bool, str] = {}
        for spec in self.inputs:
            rank, expected = arrays[spec.name].ndim, len(spec.shape)
            shared = spec.name not in self._batched
            if rank != expected and (shared or rank != expected - 1):
                raise UsageError(
                    f"{self.what}, {where}: input '{spec.name}' expects rank {expected}"
                    f"{'' if shared else f' (or {expected - 1} for a single sample)'}, got {rank} "
                    f"(shape {list(arrays[spec.name].shape)})."
                )
            if not shared:
                found[rank == expected - 1] = spec.name
        if len(found) == 2:
            raise UsageError(
                f"{self.what}, {where}: '{found[True]}' looks like one sample, '{found[False]}' like a batch."
            )
        return True in found

    def _same_shared(self, one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
        shared = [spec.name for spec in self.inputs if spec.name not in self._batched]
        return all(np.array_equal(one[name], other[name]) for name in shared)

    def _together(self, single: Sequence[Mapping[str, Array]]) -> Iterator[Batch]:
        if not single:
            return
        stacked = {
            name: np.stack([arrays[name] for arrays in single])
            if name in self._batched or name == self.labels
            else single[0][name]
            for name in single[0]
        }
        yield self._batch(stacked, "samples put together")

    def _cut(self, arrays: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        sizes = {name: len(arrays[name]) for name in (*self._batched, *([self.labels] if self.labels else []))}
        self._agree(sizes, "arrays")
        total = next(iter(sizes.values()), 1)
        step = self._size
        for start in range(0, total, step):
            yield {name: array[start : start + step] if name in sizes else array for name, array in arrays.items()}
        if not total:
            raise UsageError(f"{self.what} holds no samples.", hint="Give at least one.")

    def _agree(self, sizes: Mapping[str, int], where: str) -> None:
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
            raise UsageError(f"{self.what}, {where}: the numbers of samples differ: {listed}.")

    def _batch(self, arrays: Mapping[str, Array], where: str) -> Batch:
        sizes: dict[str, tuple[str, int]] = {}
        for spec in self.inputs:
            for axis, (dim, size) in enumerate(zip(spec.shape, arrays[spec.name].shape, strict=True)):
                self._fits(spec, axis, dim, size, sizes, where)
        counts = {name: len(arrays[name]) for name in self._batched}
        labels = None
        if self.labels:
            labels = self._label_array(arrays[self.labels], where)
            counts[self.labels] = len(labels)
        self._agree(counts, where)
        samples = next(iter(counts.values()), 1)
        if samples == 0:
            raise UsageError(f"{self.what}, {where}: the batch is empty.")
        feeds = {spec.name: np.ascontiguousarray(arrays[spec.name]) for spec in self.inputs}
        return Batch(feeds, labels, samples, tuple(self.inputs))

    def _fits(
        self,
        spec: TensorSpec,
        axis: int,
        dim: int | str | None,
        size: int,
        sizes: dict[str, tuple[str, int]],
        where: str,
    ) -> None:
        place = f"{self.what}, {where}: axis {axis} of input '{spec.name}'"
        if isinstance(dim, int) and size != dim:
            raise UsageError(f"{place} must be {dim}, got {size}.")
        if not isinstance(dim, str):
            return
        other, expected = sizes.setdefault(dim, (spec.name, size))
        if size != expected:
            raise UsageError(f"{place} ('{dim}') is {size}, but {expected} in '{other}'.")
        limit = self.ranges.get(dim)
        is_batch_axis = axis == 0 and spec.name in self._batched
        # The last batch may be short: the engine's own check names the shape if it cannot take it.
        if limit and (size > limit.maximum or (size < limit.minimum and not is_batch_axis)):
            raise UsageError(
                f"{place} ('{dim}') is {size}; its range is {limit.minimum} to {limit.maximum}.",
                hint="Widen the range under source.ranges, or cut the samples.",
            )

    def _label_array(self, labels: Array, where: str) -> Array:
        labels = np.atleast_1d(labels)
        if labels.dtype.kind not in "iub" or labels.ndim != 1:
            raise UsageError(
                f"{self.what}, {where}: labels '{self.labels}' must be one whole number per sample, got "
                f"{labels.dtype.name} of shape {list(labels.shape)}."
            )
        return labels.astype(np.int64)


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _first(batch: Batch, samples: int, batched: Sequence[str]) -> Batch:
    """The batch's first samples."""
    if samples >= batch.size:
        return batch
    feeds = {name: array[:samples] if name in batched else array for name, array in batch.feeds.items()}
    labels = None if batch.labels is None else batch.labels[:samples]
    return dataclasses.replace(batch, feeds=feeds, labels=labels, size=samples)
