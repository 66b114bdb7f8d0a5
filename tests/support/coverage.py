"""What the fusion passes find in a model, against what its source says is in it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import registry, trial
from passes.base import PassContext, Skip
from tests.support.runner import run

NATIVE = {
    "attention": ("Attention",),
    "gelu": ("Gelu",),
    "layer_norm": ("LayerNormalization",),
    "rms_norm": ("RMSNormalization", "SimplifiedLayerNormalization"),
    "rotary": ("RotaryEmbedding",),
}
"""Operators that are the pattern already, written by the exporter itself."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What the default fusions did to one model.

    Attributes:
        found: Rewrites per pattern.
        native: Operators per pattern that the exporter had written already.
        misses: Near misses with their pattern.
        nodes_before: Nodes of the main graph before.
        nodes_after: Nodes after.
        error: Largest difference of any output to the unfused graph, relative to its largest value.
        seconds: Time of all passes with their checks.
    """

    found: dict[str, int]
    native: dict[str, int]
    misses: tuple[tuple[str, Skip], ...]
    nodes_before: int
    nodes_after: int
    error: float
    seconds: float

    def total(self, pattern: str) -> int:
        """How often the pattern is one operator in the end."""
        return self.found.get(pattern, 0) + self.native.get(pattern, 0)


def native(model: ir.Model) -> dict[str, int]:
    """Patterns that the exporter wrote as one operator."""
    count = Counter(node.op_type for node in model.graph if node.domain == "")
    found = {pattern: sum(count[kind] for kind in kinds) for pattern, kinds in NATIVE.items()}
    tanh = sum(
        node.op_type == "Gelu" and node.attributes.get_string("approximate", "none") == "tanh"
        for node in model.graph
    )
    return {**found, "gelu": found["gelu"] - tanh, "gelu_tanh": tanh}


def cover(model: ir.Model, reference: ir.Model, context: PassContext) -> Coverage:
    """Fuse `model` in place and compare it with `reference`, the same model left alone."""
    nodes, written = len(model.graph), native(model)
    found: Counter[str] = Counter()
    misses: list[tuple[str, Skip]] = []
    started = time.monotonic()
    for name in registry.room_default("fuse"):
        for pattern in registry.find(name)().apply(model, context).patterns:
            found[pattern.name] += pattern.found
            misses += [(pattern.name, miss) for miss in pattern.near_misses]
    seconds = time.monotonic() - started
    return Coverage(
        dict(found), written, tuple(misses), nodes, len(model.graph), difference(model, reference), seconds
    )


def difference(model: ir.Model, reference: ir.Model) -> float:
    """Largest difference of any output, relative to its largest value, on trial inputs that the reference runs."""
    feeds, old = _reference(reference)
    new = run(model, feeds)
    return max((_error(expected, new[name]) for name, expected in old.items()), default=0.0)


def _reference(reference: ir.Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, outputs); the second seed is for graphs that some inputs stop: a division by zero, no step."""
    first, second = (next(trial.feeds(reference, np.random.default_rng(seed))) for seed in (1, 0))
    try:
        return first, run(reference, first)
    except Exception:  # whatever ONNX Runtime raises; the second attempt raises it again
        return second, run(reference, second)


def _error(expected: Any, found: Any) -> float:
    """The error of one output: a tensor, a sequence of tensors, or an optional without one."""
    if expected is None or found is None:
        return float(expected is not found)
    if isinstance(expected, list):
        if len(expected) != len(found):
            return float("inf")
        return max((_error(old, new) for old, new in zip(expected, found, strict=True)), default=0.0)
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return float("inf")
    if expected.dtype.kind not in "fiu":
        return float(not np.array_equal(found, expected))
    old, new = expected.astype(np.float64), found.astype(np.float64)
    meant = np.isfinite(old)
    scale = float(np.abs(old[meant]).max(initial=0.0)) or 1.0
    error = float(np.abs(new[meant] - old[meant]).max(initial=0.0)) / scale
    return float("inf") if np.isnan(error) else error
