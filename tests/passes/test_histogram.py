"""The growing histogram: nothing lost, order of batches irrelevant, bounded."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from passes.histogram import BINS, Histogram

BATCHES = st.lists(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=6
)


def filled(batches: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_every_value_is_counted_and_the_extremes_are_exact(batches: list[np.ndarray]) -> None:
    histogram, every = filled(batches), np.concatenate(batches)
    if every.any():
        assert histogram.total >= np.count_nonzero(every)
    assert (histogram.low, histogram.high) == (every.min(), every.max())
    assert histogram.counts.shape == (BINS,)
    assert histogram.limit >= np.abs(every).max()


def test_the_order_of_batches_does_not_matter_once_the_range_is_known() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(0, scale, 1000).astype(np.float32) for scale in (1, 7, 3)]
    one, other = filled(batches), filled(batches[::-1])
    assert one.limit == other.limit
    # Folding moves a value by at most one bin of the final width.
    assert np.abs(np.cumsum(one.counts) - np.cumsum(other.counts)).max() <= 5


def test_a_quantile_is_right_to_one_bin() -> None:
    values = np.random.default_rng(1).normal(0, 2, 100_000).astype(np.float32)
    histogram = filled([values])
    for fraction in (0.01, 0.5, 0.99):
        assert abs(histogram.quantile(fraction) - np.quantile(values, fraction)) <= histogram.width


def test_growth_is_what_the_last_batch_added() -> None:
    histogram = filled([np.array([-1, 1], np.float32), np.array([0.5], np.float32)])
    assert histogram.growth == 0
    histogram.add(np.array([3], np.float32))
    assert histogram.growth == 0.5  # the range went from 2 wide to 4
