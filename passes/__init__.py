"""Graph passes over `onnx_ir`, importable without `optimize`. A file's name is its recipe name."""

from passes.base import Pass, PassContext, PassResult, Pattern, Skip
from passes.target import Target

__all__ = ["Pass", "PassContext", "PassResult", "Pattern", "Skip", "Target"]
