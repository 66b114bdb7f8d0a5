"""Plugins: layers that TensorRT does not bring itself, registered before a model or plan is read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from optimize.engines import tensorrt_plugin_builtin
from optimize.engines.tensorrt_library import Library
from optimize.engines.tensorrt_plugin_builtin import BUILTIN
from optimize.errors import BackendMissing

_ENTRY_POINTS = ("getCreators", "getPluginCreators")
"""What a library made for the registry's own loading exports; others register themselves when opened."""


def load(library: Library, paths: Sequence[str]) -> None:
    """Load plugin libraries, in order, and the built-in plugin last.

    Raises:
        BackendMissing: When one is not there or cannot be opened.
        StageFailed: When one has the built-in plugin's layer.
    """
    for path in paths:
        if path == BUILTIN:
            continue
        try:
            opened = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BackendMissing(
                f"the plugin library {path} cannot be opened: {error}.",
                hint="Correct `plugins` under `engine:`, or install what it needs.",
            ) from error
        if any(hasattr(opened, name) for name in _ENTRY_POINTS):
            library.api.get_plugin_registry().load_library(path)
    if BUILTIN in paths:
        tensorrt_plugin_builtin.register(library)


def require(paths: Sequence[str]) -> None:
    """Refuse libraries whose files are not there; names without a folder are for the loader to find.

    Raises:
        BackendMissing: Naming the first.
    """
    for path in paths:
        if "/" in path and not Path(path).is_file():
            raise BackendMissing(f"there is no plugin library {path}.", hint="Correct `plugins` under `engine:`.")


def check(needed: Sequence[str], given: Sequence[str], plan: str) -> None:
    """Refuse a plan whose plugin libraries are not named.

    Raises:
        BackendMissing: Naming the first that is missing.
    """
    here = {BUILTIN, *(Path(path).name for path in given)}
    for name in needed:
        if name not in here:
            raise BackendMissing(
                f"{plan} needs the plugin library {name}.", hint="Name it with `plugins` under `engine:`."
            )
