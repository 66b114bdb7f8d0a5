"""The files of an ONNX model on disk, and a digest over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir


def files_of(path: Path) -> list[Path]:
    """The ONNX file and every external data file its weights point to, in name order after it."""
    model = ir.load(path)
    found: set[Path] = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                found.add(Path(value.const_value.path))
    return [path, *sorted(found)]


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
