"""The files of an ONNX model on disk, and a digest over all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from optimize.errors import UsageError


def files_of(path: Path) -> list[Path]:
    """The ONNX file and every external data file its weights point to, in name order after it.

    Raises:
        UsageError: When data lies outside the file's folder, is missing, or too short.
    """
    model = ir.load(path)
    found: set[Path] = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                check_place(value.const_value, path)
                found.add(Path(value.const_value.path))
    return [path, *sorted(found)]


def check_place(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse a weight of the ONNX file `path` whose data is not a plain file in its folder, or ends too early.

    Raises:
        UsageError: Naming the weight and where it says its data is.
    """
    location = str(tensor.location)
    what = f"'{path.name}': weight '{tensor.name}' says its data is in '{location}'"
    if not location or "\0" in location:
        raise UsageError(f"{what}, which is no file name.")
    if os.path.isabs(location) or ".." in Path(location).parts or "\\" in location:
        raise UsageError(f"{what}; data must lie in the model's own folder.")
    file = path.parent / location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise UsageError(
            f"{what}, a link that leaves the model's folder.", hint="Copy the data into the model's folder."
        )
    if not file.is_file():
        raise UsageError(f"{what}, which is missing.", hint="Put the data file beside the model.")
    status = file.stat()
    if status.st_nlink > 1:
        raise UsageError(
            f"{what}, a file with {status.st_nlink} hard links, which may belong to another folder.",
            hint="Copy the data into the model's folder.",
        )
    offset, length = tensor.offset or 0, tensor.length if tensor.length is not None else tensor.nbytes
    if offset < 0 or length < tensor.nbytes or offset + tensor.nbytes > status.st_size:
        raise UsageError(
            f"{what} at bytes {offset} to {offset + tensor.nbytes}; the file has {status.st_size} bytes, "
            f"{length} are given for it."
        )


def digest(path: Path, of_file: Callable[[Path], str]) -> tuple[str, int]:
    """sha256 over the sha256 of an ONNX file and its external data files, and their bytes together."""
    total = hashlib.sha256()
    size = 0
    for file in files_of(path):
        total.update(of_file(file).encode())
        size += file.stat().st_size
    return total.hexdigest(), size


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal; the file is never whole in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
