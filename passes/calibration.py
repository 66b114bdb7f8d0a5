"""Ranges of activations from calibration data, streamed: one batch in memory, bounded statistics per tensor.

    ranges = collect(model, ["layer_norm"], context, Method(name="mse"), numerics.UINT8, symmetric=False)
    ranges.of["layer_norm"].low, .high, .amax

Tensors are observed a few at a time when they are large, so memory does not grow with the model's depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from passes import clipping
from passes.base import Calibration, PassContext, PassFailed
from passes.histogram import Histogram
from passes.numerics import Format

Array = np.ndarray[Any, np.dtype[Any]]

MethodName = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]

BATCH_BYTES = 512 << 20
"""Most bytes of observed tensors per batch; more tensors than fit are observed in further passes."""

ROWS_BYTES = 256 << 20
"""Most bytes of activation rows kept, all tensors together."""

STILL_GROWING = 0.02
"""A range that the last batch extended by more than this fraction has not settled."""


@dataclasses.dataclass(frozen=True)
class Method:
    """How a range is chosen.

    Attributes:
        name: "minmax" keeps every value; "moving_average" smooths the batches' extremes; "percentile" cuts
            the tails; "entropy" minimizes KL divergence; "mse" minimizes the quantization error.
        percentile: Percent of values kept by "percentile".
        momentum: Weight of each new batch for "moving_average".
    """

    name: MethodName = "minmax"
    percentile: float = 99.999
    momentum: float = 0.1


@dataclasses.dataclass(frozen=True)
class Range:
    """What calibration learned of one tensor.

    Attributes:
        low: Lower end of the chosen range, at most 0.
        high: Upper end, at least 0.
        observed_low: Smallest value seen.
        observed_high: Largest value seen.
        channel_low: (channels,) float32 smallest value per channel, or None when no axis was asked for.
        channel_high: (channels,) float32 largest value per channel, or None.
        channel_mean: (channels,) float32 mean per channel, or None.
        rows: (rows, channels) float32 sample of the tensor along its channel axis, or None.
    """

    low: float
    high: float
    observed_low: float
    observed_high: float
    channel_low: Array | None = None
    channel_high: Array | None = None
    channel_mean: Array | None = None
    rows: Array | None = None

    @property
    def amax(self) -> float:
        """Largest magnitude of the chosen range: what a symmetric scale maps onto the grid's end."""
        return max(-self.low, self.high)

    @property
    def channel_amax(self) -> Array | None:
        """(channels,) float32 largest magnitude per channel, or None."""
        if self.channel_low is None or self.channel_high is None:
            return None
        amax: Array = np.maximum(-self.channel_low, self.channel_high)
        return amax


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Calibration's result.

    Attributes:
        of: Range per value name.
        unusable: Values without a range, with the reason as the end of a sentence.
        notes: Warnings for the reader, as full sentences.
        samples: Calibration samples that flowed through.
        batches: Batches that flowed through.
    """

    of: Mapping[str, Range]
    unusable: Mapping[str, str]
    notes: tuple[str, ...]
    samples: int
    batches: int


def collect(
    model: ir.Model,
    values: Sequence[str],
    context: PassContext,
    method: Method,
    grid: Format,
    *,
    symmetric: bool,
    channel_axes: Mapping[str, int] | None = None,
    divisors: Mapping[str, Array] | None = None,
    rows: int = 0,
) -> Ranges:
    """Run the calibration data through `model` and learn the named values' ranges.

    Args:
        model: Run unoptimised, in floating point, as it is.
        values: Names of values of the main graph, graph inputs included.
        context: Gives the calibration data and takes progress.
        method: How ranges are chosen.
        grid: Format of the quantized activation, for "mse" and "entropy".
        symmetric: Whether the quantizer has zero point 0.
        channel_axes: Channel axis per value (negative counts from the end), to learn channel statistics.
        divisors: (channels,) factors per value that it is divided by before anything is counted; needs the
            value's channel axis.
        rows: Rows to keep per value with a channel axis.

    Raises:
        PassFailed: When there is no calibration data, or none of it gives a usable range.
    """
    calibration = context.calibration
    if calibration is None or calibration.samples == 0:
        raise PassFailed(
            "calibration: there is no calibration data, and static ranges cannot be guessed. "
            "Add `calibration:` to the recipe, or use dynamic activations."
        )
    watched = {
        name: _Watched(method, (channel_axes or {}).get(name), (divisors or {}).get(name))
        for name in dict.fromkeys(values)
    }
    batches = 0
    for group in _groups(model, calibration, list(watched)):
        batches = _watch(model, calibration, {name: watched[name] for name in group}, context, rows, len(watched))
    return _conclude(watched, method, grid, symmetric, calibration.samples, batches)


class _Watched:
    """Running statistics of one value."""

    def __init__(self, method: Method, axis: int | None, divisor: Array | None) -> None:
        self.method = method
        self.axis = axis
        self.divisor = divisor
        self.histogram = Histogram()
        self.average: tuple[float, float] | None = None
        self.low: Array | None = None
        self.high: Array | None = None
        self.total: Array | None = None
        self.count = 0
        self.kept: list[Array] = []
        self.fault = ""

    def add(self, array: Array, batch: int, keep: int) -> None:
        if self.fault:
            return
        if array.dtype.kind not in "f" and array.dtype.name not in ("bfloat16", "float16"):
            self.fault = f"holds {array.dtype.name}, not floating point"
            return
        array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            bad = "NaN" if np.isnan(array).any() else "infinity"
            self.fault = f"holds {bad} in calibration batch {batch + 1}"
            return
        if self.axis is not None and array.ndim and array.size:
            array = self._by_channel(array, keep)
        if array.size == 0:
            return
        self.histogram.add(array)
        low, high = float(array.min()), float(array.max())
        if self.average is None:
            self.average = (low, high)
        else:
            weight = self.method.momentum
            self.average = (
                (1 - weight) * self.average[0] + weight * low,
                (1 - weight) * self.average[1] + weight * high,
            )

    def _by_channel(self, array: Array, keep: int) -> Array:
        """Add channel statistics; gives the values back as (rows, channels), divided."""
        assert self.axis is not None
        by_row = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])
        if self.divisor is not None:
            by_row = by_row / self.divisor
        low, high = by_row.min(axis=0), by_row.max(axis=0)
        total = by_row.sum(axis=0, dtype=np.float64)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.total = total if self.total is None else self.total + total
        self.count += len(by_row)
        if keep:
            # Evenly spaced: the same rows every run, and every part of the batch takes part.
            at = np.unique(np.linspace(0, len(by_row) - 1, min(keep, len(by_row))).astype(int))
            self.kept.append(by_row[at].copy())
        return by_row


def _groups(model: ir.Model, calibration: Calibration, names: list[str]) -> Iterator[list[str]]:
    """Split the values so that one batch of a group fits in `BATCH_BYTES`, by the sizes of the first batch."""
    first = 8
    at = 0
    size = first
    while at < len(names):
        group = names[at : at + size]
        if at + size < len(names):
            sample = next(iter(calibration.observe(model, group)), {})
            widest = max((array.nbytes for array in sample.values()), default=1)
            size = max(1, int(BATCH_BYTES // max(widest, 1)))
            group = names[at : at + size]
        yield group
        at += len(group)


def _watch(
    model: ir.Model,
    calibration: Calibration,
    watched: Mapping[str, _Watched],
    context: PassContext,
    rows: int,
    tensors: int,
) -> int:
    """One pass over the data for one group of values; gives the number of batches."""
    done = batches = 0
    for batch, observed in enumerate(calibration.observe(model, list(watched))):
        size = max((len(array) for array in observed.values() if array.ndim), default=1)
        done = min(done + size, calibration.samples)
        for name, state in watched.items():
            keep = 0
            if rows and state.axis is not None and observed[name].ndim:
                width = observed[name].shape[state.axis] * 4
                held = min(rows, ROWS_BYTES // max(tensors * width, 1))
                keep = max(1, -(-held * size // max(calibration.samples, 1)))
            state.add(observed[name], batch, keep)
        context.progress("calibrate", done, calibration.samples)
        batches = batch + 1
    return batches


def _conclude(
    watched: Mapping[str, _Watched], method: Method, grid: Format, symmetric: bool, samples: int, batches: int
) -> Ranges:
    found: dict[str, Range] = {}
    unusable: dict[str, str] = {}
    constant: list[str] = []
    growing: list[tuple[float, str]] = []
    for name, state in watched.items():
        histogram = state.histogram
        if state.fault:
            unusable[name] = state.fault
        elif histogram.low > histogram.high:
            unusable[name] = "was never reached by the calibration data"
        elif histogram.low == histogram.high == 0:
            unusable[name] = "was zero throughout the calibration data (it never activates)"
        else:
            if histogram.low == histogram.high:
                constant.append(name)
            if histogram.growth > STILL_GROWING and batches > 1:
                growing.append((histogram.growth, name))
            low, high = _choose(state, method, grid, symmetric)
            mean = None if state.total is None else (state.total / max(state.count, 1)).astype(np.float32)
            kept = np.concatenate(state.kept) if state.kept else None
            found[name] = Range(low, high, histogram.low, histogram.high, state.low, state.high, mean, kept)
    if not found and unusable:
        name, why = next(iter(unusable.items()))
        raise PassFailed(
            f"calibration: no value has a usable range; '{name}' {why}. Check the calibration data and the model."
        )
    notes = _notes(unusable, constant, growing, samples, batches)
    return Ranges(found, unusable, notes, samples, batches)


def _choose(state: _Watched, method: Method, grid: Format, symmetric: bool) -> tuple[float, float]:
    histogram = state.histogram
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high or histogram.low == histogram.high:
        return low, high
    if method.name == "moving_average":
        assert state.average is not None
        low, high = min(state.average[0], 0.0), max(state.average[1], 0.0)
    elif method.name == "percentile":
        low, high = clipping.percentile(histogram, method.percentile)
    elif method.name == "entropy":
        limit = clipping.least_divergence(histogram)
        low, high = max(low, -limit), min(high, limit)
    elif method.name == "mse":
        low, high = clipping.least_error(histogram, grid, symmetric)
    if low == high:
        # A percentile of a tensor that is almost always 0 can be 0: fall back on what was seen.
        return min(histogram.low, 0.0), max(histogram.high, 0.0)
    return low, high


def _notes(
    unusable: Mapping[str, str],
    constant: list[str],
    growing: list[tuple[float, str]],
    samples: int,
    batches: int,
) -> tuple[str, ...]:
    notes = []
    if batches == 1:
        count = "1 sample" if samples == 1 else f"{samples} samples in one batch"
        notes.append(f"Calibration saw {count}: whether the ranges have settled cannot be told. Add batches.")
    if growing:
        growth, name = max(growing)
        notes.append(
            f"{len(growing)} range(s) still grew at the last calibration batch, '{name}' most (by "
            f"{growth:.0%}): the data may be too few. Add samples."
        )
    if constant:
        notes.append(f"{len(constant)} tensor(s) were constant during calibration: {_few(constant)}.")
    for name, why in list(unusable.items())[:5]:
        notes.append(f"'{name}' {why}; its layers stay in floating point.")
    return tuple(notes)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
