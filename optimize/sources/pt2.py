"""Opening a `.pt2` file without running what a stranger put into it.

`torch.export.load` unpickles: weights marked `use_pickle`, custom objects, files of older versions, and the
sample inputs whenever the restricted reader refuses them. The program itself can hold code too, see `pt2_program`.
All of that is looked at first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import UsageError
from optimize.sources import pt2_program
from optimize.sources.quiet import quiet

if TYPE_CHECKING:
    import torch

ALLOW = "If you trust the file, pass --allow-pickle: loading it runs code from it."

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_pt2(path: Path, *, allow_pickle: bool) -> torch.export.ExportedProgram:
    """Read a program saved by `torch.export.save`.

    Raises:
        UsageError: When the file is missing, damaged, of another version, or holds a pickle and
            `allow_pickle` is False.
    """
    import torch

    if not path.is_file():
        raise UsageError(f"there is no file '{path}'.")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"'{path.name}' is not a program saved by torch.export.save, or it is damaged.")
    if not allow_pickle:
        _refuse_code(path)
    try:
        with quiet(), contextlib.nullcontext() if allow_pickle else _weights_only():
            return torch.export.load(str(path))
    except UsageError:
        raise
    except Exception as error:  # torch raises anything from KeyError to AssertionError for a damaged file
        line = " ".join(str(error).split())[:300]
        raise UsageError(
            f"'{path.name}' cannot be loaded by torch {torch.__version__}: {type(error).__name__}: {line}",
            hint="It may be damaged, or saved by another version: save it again with torch.export.save.",
        ) from error


def _refuse_code(path: Path) -> None:
    import torch

    try:
        # torch's own reader: another one could see other contents in a file made to deceive.
        reader = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
    except RuntimeError as error:
        raise UsageError(f"'{path.name}' is not a program saved by torch.export.save, or it is damaged.") from error
    if not any(name.startswith("models/") and name.endswith(".json") for name in names):
        raise UsageError(f"'{path.name}' holds no program, or one saved by an old version of torch.", hint=ALLOW)
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise UsageError(f"'{path.name}' holds compiled code ({name}).", hint=ALLOW)
        if name.startswith(("data/weights/", "data/constants/")):
            if name.endswith(".pt"):
                raise UsageError(f"'{path.name}' holds a pickle ({name}).", hint=ALLOW)
            if name.endswith("_config.json"):
                _refuse_pickled(_json(reader.get_record(name), path), name, path)
        if name.startswith("models/") and name.endswith(".json"):
            _refuse_program(reader.get_record(name), path)
        if name.startswith("data/sample_inputs/"):
            _refuse_sample(reader.get_record(name), name, path)


def _json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path.name}' is damaged: {error}.") from error


def _refuse_program(content: bytes, path: Path) -> None:
    try:
        found = pt2_program.fault(_json(content, path))
    except (ValueError, RecursionError) as error:  # a tree structure is JSON in a text
        raise UsageError(f"'{path.name}' is damaged: {error}.") from error
    if found is not None:
        raise UsageError(f"'{path.name}' {found}.", hint=ALLOW)


def _refuse_pickled(config: Any, name: str, path: Path) -> None:
    for key, payload in config.get("config", {}).items():
        file = str(payload.get("path_name", ""))
        if payload.get("use_pickle") or not file.startswith(("weight_", "tensor_")):
            raise UsageError(f"'{path.name}' keeps '{key}' as a pickle ({name}).", hint=ALLOW)


def _refuse_sample(content: bytes, name: str, path: Path) -> None:
    import torch

    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever the restricted reader says, the full one is what must not run
        raise UsageError(f"'{path.name}' keeps its example inputs as a pickle ({name}).", hint=ALLOW) from error


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Make every `torch.load` inside refuse a pickle, whatever it was asked for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
