"""Batches of samples, and digests by which they are recognised again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
        samples: How many samples it holds: the size of the batch axis.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    samples: int


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


def content_digest(batches: Iterable[Batch]) -> str:
    """sha256 over names, types, shapes and bytes of all batches, in order; hexadecimal."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch.feeds):
            _add(digest, name, batch.feeds[name])
        if batch.labels is not None:
            _add(digest, "\0labels", batch.labels)
    return digest.hexdigest()


def sample_digests(batch: Batch, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """One sha256 per sample, the same however the sample was padded and whatever it was batched with.

    Padding is what lies at the end of a dynamic axis where a whole-number or boolean input that is not zero
    throughout (an attention mask) is zero.
    """
    batched = batched_inputs(inputs)
    axes = {spec.name: spec.shape[1:] for spec in inputs if spec.name in batched}
    digests = []
    for row in range(batch.samples):
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
