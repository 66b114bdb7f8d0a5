"""Samples from where the recipe says: a function, a .npz file, a folder of them, or random numbers."""

from __future__ import annotations

import inspect
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimize import user_code
from optimize.engines.base import AxisRange, TensorSpec
from optimize.errors import UsageError
from optimize.evaluate.batch import Array, Batch, Digest, batched_inputs
from optimize.evaluate.grouping import Grouping

__all__ = ["Batch", "Digest", "load_batches"]

RANDOM_SAMPLES = 32
"""Samples of "random" data when the recipe says no number."""


def load_batches(
    data: str,
    *,
    samples: int | None,
    batch: int,
    arguments: Mapping[str, Any],
    base: Path,
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, AxisRange],
    labels: str | None,
    seed: int,
    allow_pickle: bool = False,
    limits: Mapping[str, int] | None = None,
) -> Iterator[Batch]:
    """Read batches one at a time, checked against the model's inputs.

    A function or folder may give single samples (each array one axis short), which are put together while
    their shapes agree, or ready batches, which are kept as they are. The arrays of one .npz file, or of one
    dict that a function returns, hold all samples along axis 0 and are cut.

    Args:
        data: "file.py:function", "module:function", "data.npz", a folder of .npz files, or "random".
        samples: How many to take; None takes all.
        batch: Samples per batch where they come one by one or are cut.
        arguments: Keyword arguments for a function.
        base: Folder that relative paths start from.
        inputs: The model's inputs.
        ranges: Range of every dynamic axis; a size outside is refused.
        labels: Name of the array that holds class labels, or None.
        seed: For "random".
        allow_pickle: Load .npz arrays that hold Python objects. Loading them runs code from the file.
        limits: For "random": input → exclusive upper bound of its whole numbers (see `index_limits`).

    Raises:
        UsageError: When the data cannot be read, is empty, or does not fit the inputs.
    """
    grouping = Grouping(inputs, ranges, labels, batch, what=f"data '{data}'")
    items: Iterable[tuple[str, Mapping[str, Any], bool]]
    if data == "random":
        items = [("random", _random(inputs, ranges, samples, batch, seed, limits or {}), True)]
        grouping = Grouping(inputs, ranges, None, batch, what="random data")
    elif (base / data).is_dir():
        items = _from_folder(base / data, allow_pickle)
    elif data.endswith(".npz"):
        items = [(Path(data).name, _read_npz(base / data, allow_pickle), True)]
    elif user_code.is_reference(data):
        items = _from_function(data, arguments, base)
    else:
        raise UsageError(
            f"data '{data}' is no folder in {base}, no .npz file and no function.",
            hint='Name a .npz file, a folder of .npz files, "file.py:function", or "random".',
        )
    return grouping.batches(items, samples)


def _from_function(
    reference: str, arguments: Mapping[str, Any], base: Path
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    what = f"data '{reference}'"
    file = user_code.file_of(reference, base, what="data")
    function = user_code.load(reference, base, what="data")
    result = user_code.call(function, arguments, what=what, file=file)
    if isinstance(result, Mapping):
        yield "what it returns", result, True
        return
    if not isinstance(result, Iterable) or isinstance(result, str | bytes):
        raise UsageError(
            f"{what} returns a {type(result).__name__}.",
            hint="It must yield {input: array}, or return one such dict.",
        )
    iterator = iter(result)
    number = 0
    while True:
        with user_code.errors_of_user(file, what=f"{what} failed at item {number}"):
            item = next(iterator, None)
        if item is None:
            break
        if not isinstance(item, Mapping):
            raise UsageError(f"{what}: item {number} is a {type(item).__name__}; expected a dict {{input: array}}.")
        yield f"item {number}", item, False
        number += 1
    if inspect.isgenerator(iterator):
        iterator.close()


def _from_folder(folder: Path, allow_pickle: bool) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    files = sorted(path for path in folder.iterdir() if path.suffix == ".npz")
    if not files:
        raise UsageError(f"data '{folder}': the folder holds no .npz file.")
    for path in files:
        yield path.name, _read_npz(path, allow_pickle), False


_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    MemoryError,  # a header that promises more than there is room for
    RuntimeError,  # an encrypted member; NotImplementedError, a compression that zipfile does not know
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,  # NumPy reads an array's header as Python source
    SyntaxError,
    TypeError,
)
"""What NumPy and zipfile raise on bytes that are no archive of arrays."""


def _read_npz(path: Path, allow_pickle: bool) -> dict[str, Array]:
    if not path.is_file():
        raise UsageError(f"data '{path}': there is no such file.")
    try:
        with np.load(path, allow_pickle=allow_pickle) as archive:
            if not hasattr(archive, "files"):
                raise UsageError(f"data '{path.name}' is a single array.", hint="Save it with np.savez.")
            return {name: _read_array(archive, name, path) for name in archive.files}
    except _DAMAGED as error:
        raise UsageError(f"data '{path.name}' is not a .npz file, or it is damaged ({error}).") from error


def _read_array(archive: Any, name: str, path: Path) -> Array:
    try:
        array: Array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UsageError(
            f"data '{path.name}': array '{name}' holds Python objects, which are stored as a pickle.",
            hint="Save plain numbers, or pass --allow-pickle if you trust the file: loading it runs code.",
        ) from error
    return array


def _random(
    inputs: Sequence[TensorSpec],
    ranges: Mapping[str, AxisRange],
    samples: int | None,
    batch: int,
    seed: int,
    limits: Mapping[str, int],
) -> dict[str, Array]:
    """Real numbers are standard normal, whole numbers below their limit; without one they are ones.

    One is the value that is safe without knowing the model: a token that every vocabulary has, a mask that
    hides nothing.
    """
    rng = np.random.default_rng(seed)
    batched = batched_inputs(inputs)
    arrays: dict[str, Array] = {}
    for spec in inputs:
        sizes = [ranges[dim].typical if isinstance(dim, str) and dim in ranges else dim for dim in spec.shape]
        shape = [size if isinstance(size, int) else batch for size in sizes]
        if spec.name in batched:
            shape[0] = samples or RANDOM_SAMPLES
        arrays[spec.name] = _random_array(spec, tuple(shape), rng, limits.get(spec.name))
    return arrays


def _random_array(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator, limit: int | None) -> Array:
    import ml_dtypes

    if spec.dtype in ("str", "object"):
        raise UsageError(f"random data: input '{spec.name}' takes text; name real data.")
    dtype = np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype))
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, limit, shape).astype(dtype) if limit else np.ones(shape, dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)
