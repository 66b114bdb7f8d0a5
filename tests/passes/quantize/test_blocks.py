"""The tiled kernel computes what `passes.numerics` says, for every type, layout and rounding case."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import numerics
from passes.quantize import _tiles
from passes.quantize._blocks import quantize_blocks, restored
from passes.quantize._scales import Algorithm, chooser
from passes.quantize._tiles import layout, to_float32

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def draw(seed: int, shape: tuple[int, ...], dtype: type, spread: float = 0.05) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((64, 10), 0), ((10, 64), 1), ((96, 7), 0), ((3, 64, 6), 1)])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("algorithm", ["rtn", "mse"])
def test_codes_are_those_of_quantize_linear_with_the_same_scales(
    dtype: type, shape: tuple[int, ...], axis: int, asymmetric: bool, algorithm: str
) -> None:
    weight = draw(0, shape, dtype)
    choose = chooser(algorithm, dtype, asymmetric=asymmetric)
    made = quantize_blocks(
        weight, axis, 32, choose, scale_dtype=dtype, asymmetric=asymmetric, signed=not asymmetric
    )
    blocks = weight.reshape(layout(shape, axis, 32))
    grid = numerics.UINT4 if asymmetric else numerics.INT4
    points = made.zero_points[:, None, :] if asymmetric else None
    expected = numerics.quantize(blocks, made.scales[:, None, :], grid, points)
    np.testing.assert_array_equal(made.codes, numerics.pack_4bit(expected))


@pytest.mark.parametrize("inner", [1, 6])
def test_by_column_holds_the_same_codes_packed_along_the_blocks(inner: int) -> None:
    weight = draw(1, (96, inner), np.float32)
    choose = chooser("rtn", np.float32, asymmetric=False)
    rows = quantize_blocks(weight, 0, 32, choose, scale_dtype=np.float32)
    columns = quantize_blocks(weight, 0, 32, choose, scale_dtype=np.float32, by_column=True)
    by_row = numerics.unpack_4bit(rows.codes, (96, inner), numerics.UINT4)
    by_column = numerics.unpack_4bit(columns.codes, (inner, 96), numerics.UINT4)
    np.testing.assert_array_equal(by_column, by_row.T)
    np.testing.assert_array_equal(columns.scales.reshape(inner, 3), rows.scales.reshape(3, inner).T)


@pytest.mark.parametrize("columns", [512, 513, 1500])
def test_many_tiles_give_what_one_tile_gives(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    weight = draw(2, (128, columns), np.float16)
    choose = chooser("mse", np.float16, asymmetric=False)
    whole = quantize_blocks(weight, 0, 32, choose, scale_dtype=np.float16, signed=True)
    monkeypatch.setattr(_tiles, "TILE_ELEMENTS", 1 << 12)
    cut = quantize_blocks(weight, 0, 32, choose, scale_dtype=np.float16, signed=True)
    np.testing.assert_array_equal(cut.codes, whole.codes)
    np.testing.assert_array_equal(cut.scales, whole.scales)


def test_every_float16_and_bfloat16_number_converts_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = bits.view(dtype)
        finite = np.isfinite(values.astype(np.float32))
        np.testing.assert_array_equal(to_float32(values[finite]), values[finite].astype(np.float32))
        np.testing.assert_array_equal(to_float32(values), values.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1e-7, 1e-3, 1.0, 1e3]))
def test_the_search_never_loses_to_rounding_to_nearest(seed: int, spread: float) -> None:
    weight = draw(seed, (64, 12), np.float32, spread)

    def error(algorithm: str) -> np.ndarray:
        choose = chooser(algorithm, np.float32, asymmetric=False)
        made = quantize_blocks(weight, 0, 32, choose, scale_dtype=np.float32, signed=True)
        codes = numerics.unpack_4bit(made.codes, (2, 32, 12), numerics.INT4)
        back = numerics.dequantize(codes, made.scales[:, None, :])
        return ((back - weight.reshape(2, 32, 12)) ** 2).sum(axis=1)

    assert (error("mse") <= error("rtn") * (1 + 1e-5) + 1e-30).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("algorithm", ["rtn", "mse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_with_nan_or_infinity_is_refused(bad: float, algorithm: str, dtype: type) -> None:
    weight = draw(3, (64, 8), np.float32).astype(dtype)
    weight[40, 5] = bad
    choose = chooser(algorithm, dtype, asymmetric=False)
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_blocks(weight, 0, 32, choose, scale_dtype=dtype)


def test_a_weight_of_zeros_stays_zero() -> None:
    for asymmetric in (False, True):
        choose = chooser("mse", np.float16, asymmetric=asymmetric)
        made = quantize_blocks(
            np.zeros((64, 8), np.float16), 0, 32, choose, scale_dtype=np.float16, asymmetric=asymmetric
        )
        codes = numerics.unpack_4bit(made.codes, (2, 32, 8), numerics.UINT4).astype(np.int32)
        zero = 8 if made.zero_points is None else made.zero_points[:, None, :].astype(np.int32)
        assert (codes == zero).all()


@pytest.mark.parametrize("asymmetric", [False, True])
def test_half_quadratic_scales_leave_a_smaller_sum_of_small_powers_than_the_range_does(asymmetric: bool) -> None:
    values = np.random.default_rng(0).standard_t(2, (4, 32, 16)).astype(np.float32)

    def power_sum(algorithm: Algorithm) -> float:
        choose = chooser(algorithm, np.float32, asymmetric=asymmetric)
        error = restored(values.reshape(-1, 16), 32, choose) - values.reshape(-1, 16)
        return float((np.abs(error) ** 0.7).sum())

    assert power_sum("hqq") < 0.97 * power_sum("rtn")


def test_half_quadratic_zero_points_hold_zeros_and_refuse_nan() -> None:
    zeros = np.zeros((2, 32, 3), np.float32)
    for asymmetric in (False, True):
        choose = chooser("hqq", np.float32, asymmetric=asymmetric)
        assert (restored(zeros.reshape(-1, 3), 32, choose) == 0).all()
        with pytest.raises(ValueError, match="NaN"):
            choose(zeros * np.nan, (slice(0, 2), slice(0, 3)))


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("algorithm", ["rtn", "mse", "hqq"])
def test_what_trials_read_back_is_what_is_stored(algorithm: Algorithm, asymmetric: bool) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    choose = chooser(algorithm, np.float32, asymmetric=asymmetric)
    made = quantize_blocks(weight, 0, 32, choose, scale_dtype=np.float32, asymmetric=asymmetric)
    codes = numerics.unpack_4bit(made.codes, (64, 6), numerics.UINT4).astype(np.float32)
    zero = np.float32(8) if made.zero_points is None else np.repeat(made.zero_points, 32, axis=0).astype(np.float32)
    back = (codes - zero) * np.repeat(made.scales, 32, axis=0)
    np.testing.assert_array_equal(restored(weight, 32, choose), back)
