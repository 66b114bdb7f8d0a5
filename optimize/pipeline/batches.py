"""Batches on disk: one .npz per batch, in order; labels beside the inputs under a reserved name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.base import TensorSpec
from passes import array_files

Array = np.ndarray[Any, Any]
LABELS = "__labels__"


def write(directory: Path, batches: Iterable[Mapping[str, Array]]) -> int:
    """Write batches into a new folder; how many."""
    directory.mkdir(parents=True)
    count = 0
    for count, batch in enumerate(batches, start=1):
        array_files.write(directory / f"{count - 1:08d}.npz", batch)
    return count


def read(directory: Path, *, skip: Sequence[str] = (LABELS,)) -> Iterator[dict[str, Array]]:
    """Yield the batches of a folder in order, one in memory at a time, without the names in `skip`."""
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            yield {name: data[name] for name in data.files if name not in skip}


def count(directory: Path) -> int:
    """Number of batches in a folder."""
    return sum(1 for _ in directory.glob("*.npz"))


def labels(directory: Path) -> Iterator[Array | None]:
    """Yield each batch's labels, or None where it has none."""
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            yield data[LABELS] if LABELS in data.files else None


def resized(feeds: Mapping[str, Array], specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Feeds with each named axis brought to a size, real values repeated or cut off: never invented.

    Args:
        feeds: One real batch.
        specs: The model's inputs; their shapes name the axes.
        sizes: Wanted size per axis name; axes not named keep theirs.
    """
    result: dict[str, Array] = {}
    for spec in specs:
        array = feeds[spec.name]
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str) and name in sizes and sizes[name] != array.shape[axis]:
                array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis=axis)
        result[spec.name] = np.ascontiguousarray(array)
    return result
