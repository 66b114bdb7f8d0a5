"""Second moments of layer inputs over the calibration data, a bounded number of layers at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes.base import PassContext, PassFailed
from passes.quantize._weights import Weight

Float64 = npt.NDArray[np.float64]

BUDGET_BYTES = 256 << 20
"""Most memory that moments take at once; a model that needs more runs its calibration data several times."""


def with_moments(
    model: ir.Model, weights: Sequence[Weight], context: PassContext, what: str
) -> Iterator[tuple[Weight, Float64 | None]]:
    """Every weight with its input's second moments, as `input_moments` gives them.

    None goes with weights that calibration cannot reach: inside sub-graphs, or not of two dimensions. Those
    come first; the rest in groups, so that the moments of one group are in memory at a time.
    """
    readers: dict[str, list[Weight]] = {}
    for weight in weights:
        source = _observable_input(weight, model.graph)
        if source is None:
            yield weight, None
        else:
            readers.setdefault(source, []).append(weight)
    sizes = {name: held[0].summed for name, held in readers.items()}
    if not sizes:
        return
    for group in input_moments(model, sizes, context, what):
        for name, moments in group.items():
            for weight in readers[name]:
                yield weight, moments


def input_moments(
    model: ir.Model, sizes: Mapping[str, int], context: PassContext, what: str
) -> Iterator[dict[str, Float64]]:
    """Yield `{value name: X.T @ X / rows}`, a group of values at a time.

    Args:
        model: The model before the weights change.
        sizes: The last axis's length per value: K of the products that read it.
        context: Gives the calibration data.
        what: The pass's name, for messages.

    Yields:
        `(K, K)` float64 per value; every value of `sizes` once, in its order.

    Raises:
        PassFailed: Without calibration data, or when a value is not finite on it.
    """
    calibration = context.calibration
    if calibration is None:
        raise PassFailed(
            f"{what}: this algorithm needs calibration data and the recipe has none. Add `calibration`, or take "
            "algorithm: mse."
        )
    for group in _groups(sizes):
        sums = {name: np.zeros((sizes[name], sizes[name])) for name in group}
        rows = dict.fromkeys(group, 0)
        for batch in calibration.observe(model, group):
            for name in group:
                x: npt.NDArray[Any] = batch[name].reshape(-1, sizes[name]).astype(np.float32)
                sums[name] += x.T @ x
                rows[name] += len(x)
        for name in group:
            if not np.isfinite(sums[name]).all():
                raise PassFailed(
                    f"{what}: '{name}' is not finite on the calibration data. Look for NaN or infinity in the "
                    "samples, or name the node that reads it under skip."
                )
        yield {name: sums[name] / max(1, rows[name]) for name in group}


def _groups(sizes: Mapping[str, int]) -> Iterator[Sequence[str]]:
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        needed = size * size * 8
        if group and held + needed > BUDGET_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += needed
    if group:
        yield group


def _observable_input(weight: Weight, graph: ir.Graph) -> str | None:
    """The value that the weight's product reads rows of K numbers from, if calibration can see it."""
    node = weight.uses[0].node
    source = node.inputs[0]
    transposed = node.attributes.get("transA")
    if len(weight.shape) != 2 or node.graph is not graph or source is None:
        return None
    if transposed is not None and transposed.as_int():
        return None
    return source.name
