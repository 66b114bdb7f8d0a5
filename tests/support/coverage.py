"""What the fusion passes find in a model, against what its source says is in it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter

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
    """Largest difference of any output, relative to its largest value, on trial inputs."""
    feeds = next(trial.feeds(reference, np.random.default_rng(1)))
    old, new = run(reference, feeds), run(model, feeds)
    worst = 0.0
    for name, expected in old.items():
        if expected.dtype.kind not in "fiu":
            worst = max(worst, float(not np.array_equal(new[name], expected)))
            continue
        meant = np.isfinite(expected)
        scale = float(np.abs(expected[meant]).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(new[name][meant] - expected[meant]).max(initial=0.0)) / scale)
    return worst
