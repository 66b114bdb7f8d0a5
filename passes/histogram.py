"""A histogram that grows: bounded memory whatever the number of values, exact extremes, same counts every run.

The bins cover [-R, R] with R a power of two. A value beyond R doubles R and folds bins in pairs, so that no
count is lost and the result does not depend on the order of the batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BINS = 8192
"""Bins over [-R, R]; the largest magnitude lies above R / 2, so at least a quarter of them are in use on one
side, four times finer than the 2048 over the whole range that other tools use."""

LEAST_LIMIT = 2.0**-100
"""Smallest R: below it a bin's width would leave float32's range."""


class Histogram:
    """Counts of real values, their extremes, and how much the last update extended the range."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = np.zeros(BINS, np.int64)
        self.low = np.inf
        self.high = -np.inf
        self.growth = 0.0

    def add(self, values: Array) -> None:
        """Count finite values.

        Args:
            values: Any shape, floating point; empty is allowed.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        before = self.high - self.low
        self.low, self.high = min(self.low, low), max(self.high, high)
        # Relative to what the range is now: 0 when nothing changed, 1 for the first update.
        now = self.high - self.low
        self.growth = 1.0 if before < 0 else (now - before) / now if now > 0 else 0.0
        largest = max(abs(self.low), abs(self.high))
        if largest > self.limit:
            self._widen(largest)
        if self.limit > 0:
            # The factor is a power of two, so the product is exact and a value always meets the same bin.
            at = np.floor(values.reshape(-1) * np.float32(BINS / 2 / self.limit)).astype(np.int32) + BINS // 2
            np.clip(at, 0, BINS - 1, out=at)
            self.counts += np.bincount(at, minlength=BINS)

    def _widen(self, largest: float) -> None:
        """Double the limit until it holds `largest`."""
        wanted = float(2.0 ** np.ceil(np.log2(max(largest, LEAST_LIMIT))))
        if self.limit == 0:
            self.limit = wanted
            return
        while self.limit < wanted:
            folded = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = folded
            self.limit *= 2

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of one bin in real units."""
        return 2 * self.limit / BINS

    def centers(self) -> Array:
        """(BINS,) float64, the middle of each bin."""
        centers: Array = (np.arange(BINS) + 0.5) * self.width - self.limit
        return centers

    def magnitudes(self) -> Array:
        """(BINS / 2,) counts of |x| over [0, R]."""
        half = BINS // 2
        folded: Array = self.counts[half:] + self.counts[:half][::-1]
        return folded

    def quantile(self, fraction: float) -> float:
        """The value below which `fraction` of the counts lie, interpolated inside its bin, within the extremes."""
        cumulative = np.cumsum(self.counts)
        wanted = fraction * cumulative[-1]
        index = int(np.searchsorted(cumulative, wanted))
        index = min(index, BINS - 1)
        before = cumulative[index - 1] if index else 0
        inside = (wanted - before) / max(int(self.counts[index]), 1)
        value = (index + inside) * self.width - self.limit
        return float(np.clip(value, self.low, self.high))
