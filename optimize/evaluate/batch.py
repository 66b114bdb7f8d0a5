"""Batches of samples, and digests by which they are recognised again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimize.engines.base import TensorSpec

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is fed in one run.

    Attributes:
        feeds: Array per input.
        labels: (samples,) integer class of each sample, or None.
        size: How many samples it holds.
        inputs: The model's inputs that it was checked against.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    size: int
    inputs: tuple[TensorSpec, ...]


class Digest:
    """sha256 over the content of batches as they pass, and one per sample."""

    def __init__(self) -> None:
        self._content = hashlib.sha256()
        self._samples: list[str] = []

    def add(self, batch: Batch) -> None:
        """Take in one batch."""
        for name in sorted(batch.feeds):
            _add(self._content, name, batch.feeds[name])
        if batch.labels is not None:
            _add(self._content, "\0labels", batch.labels)
        self._samples.extend(sample_digests(batch))

    def hexdigest(self) -> str:
        """Over names, types, shapes and bytes of all batches, in order."""
        return self._content.hexdigest()

    @property
    def samples(self) -> tuple[str, ...]:
        """One digest per sample, in order (see `sample_digests`)."""
        return tuple(self._samples)


def batched_inputs(inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Inputs whose axis 0 counts samples.

    They share the name of axis 0, or its fixed size when no axis 0 is dynamic; an input of rank 0, or with
    another axis 0, is the same for all samples of a batch.
    """
    ranked = [spec for spec in inputs if spec.shape]
    dynamic = [spec for spec in ranked if not isinstance(spec.shape[0], int)]
    if dynamic:
        first = dynamic[0].shape[0]
        return tuple(spec.name for spec in dynamic if spec.shape[0] == first)
    return tuple(spec.name for spec in ranked if spec.shape[0] == ranked[0].shape[0])


def sample_digests(batch: Batch) -> tuple[str, ...]:
    """One sha256 per sample, the same however the sample was padded and whatever it was batched with.

    Padding is what lies at the end of a dynamic axis where a whole-number or boolean input that is not zero
    throughout (an attention mask) is zero.
    """
    batched = batched_inputs(batch.inputs)
    axes = {spec.name: spec.shape[1:] for spec in batch.inputs if spec.name in batched}
    digests = []
    for row in range(batch.size):
        arrays = {name: batch.feeds[name][row] for name in batched}
        digest = hashlib.sha256()
        for name, array in sorted(_without_padding(arrays, axes).items()):
            _add(digest, name, array)
        digests.append(digest.hexdigest())
    return tuple(digests)


def _without_padding(
    arrays: Mapping[str, Array], axes: Mapping[str, tuple[int | str | None, ...]]
) -> dict[str, Array]:
    names = sorted({dim for shape in axes.values() for dim in shape if isinstance(dim, str)})
    kept = dict(arrays)
    for axis_name in names:
        sharing = {name: shape.index(axis_name) for name, shape in axes.items() if axis_name in shape}
        real = 0
        marked = False
        for name, axis in sharing.items():
            array = arrays[name]
            if array.dtype.kind not in "iub" or not array.any():
                continue
            others = tuple(other for other in range(array.ndim) if other != axis)
            used = np.flatnonzero((array != 0).any(axis=others))
            end = int(used[-1]) + 1
            real = end if not marked else min(real, end)
            marked = True
        if marked:
            for name, axis in sharing.items():
                kept[name] = kept[name].take(range(real), axis)
    return kept


def _add(digest: Any, name: str, array: Array) -> None:
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
