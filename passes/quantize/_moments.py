"""What flows into layers on the calibration data, as second moments, a bounded number of layers at a time.

In turn (`in_turn`), each layer is calibrated on what the layers before it give once they are quantized, and is
told what they lost, so that it can make good for it (after GPTAQ, Li et al. 2025).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes.base import PassContext, PassFailed
from passes.quantize._in_turn import InTurn
from passes.quantize._weights import Weight

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Made = TypeVar("Made")

BUDGET_BYTES = 256 << 20
"""Most memory that moments take at once; a model that needs more runs its calibration data several times."""

IN_TURN_BYTES = 1 << 30
"""Largest weights, summed, that are calibrated in turn: it runs the data once per layer input, and keeps the
quantized weights as floats until the last one is done."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input X, one row per token.

    Attributes:
        own: `(K, K)`, `X.T @ X / rows`.
        lost: `(K, K)`, `X.T @ (E - X) / rows`, E the input in the model as it was; None where X is E.
    """

    own: Float64
    lost: Float64 | None = None

    def padded(self, size: int) -> Moments:
        """The same with inputs that are always 0 added at the end."""
        more = ((0, size - len(self.own)), (0, size - len(self.own)))
        return Moments(np.pad(self.own, more), None if self.lost is None else np.pad(self.lost, more))


def calibrated(
    model: ir.Model,
    weights: Sequence[Weight],
    context: PassContext,
    what: str,
    make: Callable[[Weight, Moments | None], tuple[Made, Array | None]],
    *,
    in_turn: bool,
) -> Iterator[tuple[Weight, Made]]:
    """Every weight with what `make` makes of it and of its input's moments.

    No moments go with weights that calibration cannot reach: inside sub-graphs, or not of two dimensions. Those
    come first; the rest in groups, so that the moments of one group are in memory at a time.

    Args:
        model: The model; with `in_turn` its weights become what `make` gives as the weight's new numbers.
        weights: In graph order.
        context: Gives the calibration data.
        what: The pass's name, for messages.
        make: Given a weight and its moments, gives a result, and the numbers that the weight now stands for.
        in_turn: Calibrate each input on the model as quantized so far; ignored above `IN_TURN_BYTES`.
    """
    readers: dict[str, list[Weight]] = {}
    for weight in weights:
        source = _observable_input(weight, model.graph)
        if source is None:
            yield weight, make(weight, None)[0]
        else:
            readers.setdefault(source, []).append(weight)
    sizes = {name: held[0].summed for name, held in readers.items()}
    if not sizes:
        return
    if not in_turn or sum(weight.tensor.nbytes for weight in weights) > IN_TURN_BYTES:
        for group in input_moments(model, sizes, context, what):
            for name, own in group.items():
                for weight in readers[name]:
                    yield weight, make(weight, Moments(own))[0]
        return
    if context.calibration is None:
        raise PassFailed(_no_data(what))
    watched = InTurn(model, model.clone(), context.calibration, list(sizes))
    for name, size in sizes.items():
        moments = _paired(watched, name, size, what)
        for weight in readers[name]:
            made, numbers = make(weight, moments)
            if numbers is not None and weight.value.is_initializer():
                weight.value.const_value = ir.tensor(numbers.astype(weight.tensor.dtype.numpy()), name=weight.name)
            yield weight, made


def _paired(watched: InTurn, name: str, size: int, what: str) -> Moments:
    own, lost, rows = np.zeros((size, size)), np.zeros((size, size)), 0
    for now, before in watched.pairs(name):
        own += now.T @ now
        lost += now.T @ (before - now)
        rows += len(now)
    if not (np.isfinite(own).all() and np.isfinite(lost).all()):
        raise PassFailed(_not_finite(what, name))
    return Moments(own / max(1, rows), lost / max(1, rows) if lost.any() else None)


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
        raise PassFailed(_no_data(what))
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
                raise PassFailed(_not_finite(what, name))
        yield {name: sums[name] / max(1, rows[name]) for name in group}


def _no_data(what: str) -> str:
    return (
        f"{what}: this algorithm needs calibration data and the recipe has none. Add `calibration`, or take "
        "algorithm: mse."
    )


def _not_finite(what: str, name: str) -> str:
    return (
        f"{what}: '{name}' is not finite on the calibration data. Look for NaN or infinity in the samples, or "
        "name the node that reads it under skip."
    )


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
