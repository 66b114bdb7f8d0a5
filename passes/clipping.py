"""Choosing an activation's range from its histogram: percentile, entropy (KL divergence), least squared error."""

from __future__ import annotations

from typing import Any

import numpy as np

from passes import numerics
from passes.histogram import BINS, Histogram
from passes.numerics import Format

Array = np.ndarray[Any, np.dtype[Any]]

FRACTIONS = tuple(float(step) for step in np.geomspace(1.0, 0.05, 40))
"""Fractions of the observed extreme that the searches try."""


def percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    """The range that keeps `percent` of the values, the rest cut evenly on both sides."""
    tail = (1 - percent / 100) / 2
    return min(histogram.quantile(tail), 0.0), max(histogram.quantile(1 - tail), 0.0)


def least_error(histogram: Histogram, grid: Format, symmetric: bool) -> tuple[float, float]:
    """The range whose quantizer has the least squared error on the histogram (bin middles for values)."""
    used = histogram.counts > 0
    values, weights = histogram.centers()[used], histogram.counts[used].astype(np.float64)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        largest = max(-low, high)
        tried = [largest * fraction for fraction in FRACTIONS]
        amax = tried[int(np.argmin([_error(values, weights, grid, -amax, amax, True) for amax in tried]))]
        return -amax, amax
    # The two ends are searched in turns; two rounds settle, since each end's error hardly depends on the other.
    best_low, best_high = low, high
    for _ in range(2):
        lows = [low * fraction for fraction in FRACTIONS]
        best_low = lows[int(np.argmin([_error(values, weights, grid, end, best_high, False) for end in lows]))]
        highs = [high * fraction for fraction in FRACTIONS]
        best_high = highs[int(np.argmin([_error(values, weights, grid, best_low, end, False) for end in highs]))]
    return best_low, best_high


def _error(values: Array, weights: Array, grid: Format, low: float, high: float, symmetric: bool) -> float:
    zero_point: Array | None = None
    if symmetric:
        scale = numerics.symmetric_scale(np.asarray(max(-low, high)), grid)
    else:
        scale, zero_point = numerics.asymmetric_scale(np.asarray(low), np.asarray(high), grid)
    back = numerics.dequantize(numerics.quantize(values, scale, grid, zero_point), scale, zero_point)
    return float((weights * np.square(back - values)).sum())


def least_divergence(histogram: Histogram, levels: int = 128) -> float:
    """The clipping magnitude whose quantized distribution of |x| is nearest to the clipped original's.

    The Kullback-Leibler calibration of NVIDIA's "8-bit Inference with TensorRT" (GTC 2017): for each
    candidate threshold the counts beyond it are added to the last bin (P); Q spreads P's counts over `levels`
    equal groups, evenly over each group's filled bins; the threshold with the least KL(P‖Q) wins.

    Args:
        histogram: Counts of the signed values.
        levels: Quantization levels of one sign: 128 for int8.

    Returns:
        The magnitude to clip at.
    """
    counts = histogram.magnitudes().astype(np.float64)
    # Exact zeros (padding, ReLU) would dominate the divergence and are exact on any grid.
    counts[0] = min(counts[0], counts[1:].max(initial=0.0))
    last = int(np.flatnonzero(counts).max(initial=levels - 1)) + 1
    if last <= levels:
        return max(abs(histogram.low), abs(histogram.high))
    best, threshold = np.inf, last
    for end in np.unique(np.linspace(levels, last, 256).astype(int)):
        clipped = counts[:end].copy()
        clipped[-1] += counts[end:].sum()
        groups = (np.arange(end) * levels) // end
        # The clipped mass is not part of what the quantizer sees inside the range.
        inside = counts[:end]
        filled = inside > 0
        sums = np.bincount(groups, inside, levels)
        sizes = np.bincount(groups, filled, levels)
        spread = np.where(filled, (sums / np.maximum(sizes, 1))[groups], 0.0)
        divergence = _divergence(clipped, spread)
        if divergence < best:
            best, threshold = divergence, int(end)
    return min(threshold * histogram.limit / (BINS // 2), max(abs(histogram.low), abs(histogram.high)))


def _divergence(p: Array, q: Array) -> float:
    """KL(P‖Q) of two unnormalized histograms; infinite mass is avoided by a small floor under Q."""
    p, q = p / p.sum(), q / max(q.sum(), 1e-30)
    at = p > 0
    return float((p[at] * np.log(p[at] / np.maximum(q[at], 1e-12))).sum())
