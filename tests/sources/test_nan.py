"""NaN is found in every floating-point type, wherever it sits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from optimize.sources import nan


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2],
)
def test_nan_of_either_sign_is_counted_and_nothing_else(dtype: type) -> None:
    values = np.array([0.0, -0.0, 1.5, -2.0, 448.0, -448.0], dtype)
    assert nan.count(values) == 0
    values[[1, 4]] = np.array([np.nan, -np.nan], dtype)
    assert nan.count(values) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_infinities_and_the_largest_numbers_are_no_nan(dtype: type) -> None:
    largest = ml_dtypes.finfo(dtype).max
    assert nan.count(np.array([np.inf, -np.inf, largest, -largest], dtype)) == 0
    assert nan.count(np.empty(0, dtype)) == 0


def test_every_bit_pattern_of_a_half_agrees_with_numpy() -> None:
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        assert nan.count(values) == int(np.isnan(values.astype(np.float32)).sum())
