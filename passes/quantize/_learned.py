"""What calibration teaches about each activation that layers read: its quantizer, smoothing factors, rows.

Smoothing (SmoothQuant, Xiao et al. 2022): x @ w = (x / s) @ (s * w) with s = amax(x)^a / amax(w)^(1-a) per input
channel, so that outlier channels of x become part of the weights, which have a scale of their own per column.
One s serves all layers that read the same activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import numerics
from passes.base import PassContext
from passes.calibration import Method, Range, collect
from passes.layers import Layer
from passes.quantize._placing import Activation

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Learned:
    """One activation.

    Attributes:
        quantizer: Its static quantizer, of the divided activation.
        divisor: (channels,) float32 smoothing factors, or None.
        rows: (rows, channels) float32 sample of the activation, undivided; None for convolutions.
    """

    quantizer: Activation
    divisor: Array | None
    rows: Array | None


@dataclasses.dataclass(frozen=True)
class Lessons:
    """All activations: what was learned by value name, what could not be and why, and warnings.

    Attributes:
        of: Of what layers read.
        unusable: Why a value has no range.
        notes: Warnings.
        besides: Quantizers of values that belong to no layer, never divided.
    """

    of: Mapping[str, Learned]
    unusable: Mapping[str, str]
    notes: tuple[str, ...]
    besides: Mapping[str, Activation] = dataclasses.field(default_factory=dict)


def learn(
    model: ir.Model,
    layers: Sequence[Layer],
    context: PassContext,
    method: Method,
    *,
    symmetric: bool,
    alpha: float | None,
    rows: int,
    besides: Sequence[str] = (),
) -> Lessons:
    """Calibrate the activations of `layers`.

    Args:
        model: The floating-point model.
        layers: Layers to be quantized; their activations lie in the main graph.
        context: Calibration data and progress.
        method: How ranges are chosen.
        symmetric: int8 with zero point 0, else uint8 with a zero point.
        alpha: SmoothQuant's exponent for matrix layers, or None for no smoothing.
        rows: Rows of each matrix layer's activation to keep.
        besides: Values of the main graph that need a quantizer and belong to no layer.

    Raises:
        PassFailed: When there is no usable calibration data.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(str(layer.activation.name), []).append(layer)
    grid = numerics.INT8 if symmetric else numerics.UINT8
    matrices = {name: -1 for name, found in readers.items() if all(item.channel_axis == 1 for item in found)}
    first = Method("minmax") if alpha is not None else method
    watched = list(dict.fromkeys([*readers, *besides]))
    ranges = collect(model, watched, context, first, grid, symmetric=symmetric, channel_axes=matrices, rows=rows)
    divisors: dict[str, Array] = {}
    chosen = dict(ranges.of)
    if alpha is not None:
        for name in matrices:
            if name in ranges.of:
                divisors[name] = smoothing(ranges.of[name], readers[name], alpha)
        chosen.update(_divided(model, context, method, grid, symmetric, ranges.of, divisors))
    learned = {
        name: Learned(quantizer(found, symmetric), divisors.get(name), ranges.of[name].rows)
        for name, found in chosen.items()
        if name in readers
    }
    whole = ranges.of
    if besides and first != method:
        whole = collect(model, list(besides), context, method, grid, symmetric=symmetric).of
    apart = {name: quantizer(whole[name], symmetric) for name in besides if name in whole}
    return Lessons(learned, ranges.unusable, ranges.notes, apart)


def smoothing(found: Range, readers: Sequence[Layer], alpha: float) -> Array:
    """(channels,) factors with geometric mean 1; 1 for channels that never activate or have no weight."""
    assert found.channel_amax is not None
    activation = found.channel_amax.astype(np.float64)
    weight = np.max([np.abs(np.asarray(layer.weight.numpy(), np.float32)).max(axis=1) for layer in readers], axis=0)
    usable = (activation > 0) & (weight > 0)
    factors = np.ones_like(activation)
    factors[usable] = activation[usable] ** alpha / weight[usable].astype(np.float64) ** (1 - alpha)
    if usable.any():
        factors[usable] /= np.exp(np.log(factors[usable]).mean())
    return factors.astype(np.float32)


def quantizer(found: Range, symmetric: bool) -> Activation:
    """The quantizer that covers a range."""
    if symmetric:
        scale = numerics.symmetric_scale(np.asarray(found.amax), numerics.INT8)
        return Activation(float(scale), 0, True)
    scale, zero = numerics.asymmetric_scale(np.asarray(found.low), np.asarray(found.high), numerics.UINT8)
    return Activation(float(scale), int(zero), False)


def _divided(
    model: ir.Model,
    context: PassContext,
    method: Method,
    grid: numerics.Format,
    symmetric: bool,
    ranges: Mapping[str, Range],
    divisors: Mapping[str, Array],
) -> dict[str, Range]:
    """Ranges of the divided activations; only methods that look inside the range need the data again."""
    if method.name == "minmax":
        found: dict[str, Range] = {}
        for name, divisor in divisors.items():
            known = ranges[name]
            assert known.channel_low is not None
            assert known.channel_high is not None
            low, high = float((known.channel_low / divisor).min()), float((known.channel_high / divisor).max())
            found[name] = dataclasses.replace(known, low=min(low, 0.0), high=max(high, 0.0))
        return found
    again = collect(
        model, list(ranges), context, method, grid, symmetric=symmetric,
        channel_axes=dict.fromkeys(divisors, -1), divisors=divisors,
    )  # fmt: skip
    return dict(again.of)
