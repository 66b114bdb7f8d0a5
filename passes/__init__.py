"""Graph passes over `onnx_ir`, importable without `optimize`. A file's name is its recipe name.

The names below are imported when they are asked for: a recipe that names no pass reads `passes.target`
without waiting for `onnx_ir`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passes.base import Pass, PassContext, PassResult, Pattern, Skip
    from passes.target import Target

__all__ = ["Pass", "PassContext", "PassResult", "Pattern", "Skip", "Target"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'passes' has no attribute '{name}'")
    return getattr(importlib.import_module("passes.target" if name == "Target" else "passes.base"), name)
