"""NVFP4 and MX arithmetic: the rounding is the cast's, scales stay in their type, errors stay in bounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from passes import block_formats


def test_e2m1_rounding_is_the_casts_for_every_float16_and_every_tie() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    steps = every[np.isfinite(every)].astype(np.float32)
    cast = np.clip(steps, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(block_formats.round_e2m1(steps), cast)


def test_e2m1_codes_are_the_casts_for_every_float16_and_every_tie() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    steps = every[np.isfinite(every)].astype(np.float32)
    # Numbers beside a tie that float16 does not have: the last digit of a float32 decides.
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
    beside = np.concatenate([np.nextafter(ties, np.float32(way)) for way in (0, 9)])
    steps = np.concatenate([steps, beside, -beside, ties, -ties])
    cast = np.clip(steps, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(block_formats.e2m1_codes(steps.copy()), cast.view(np.uint8))


def test_e4m3_rounding_is_the_casts_for_every_positive_float16_and_every_tie() -> None:
    every = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    scales = every[every <= 448]
    scales = np.concatenate([scales, np.nextafter(scales, np.float32(0)), np.nextafter(scales, np.float32(448))])
    cast = scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(block_formats.round_e4m3(scales), cast)


@settings(max_examples=100, deadline=None)
@given(x=hnp.arrays(np.float32, (3, 32), elements=st.floats(-100, 100, width=32)))
def test_an_nvfp4_round_trip_is_off_by_at_most_half_the_widest_gap(x: np.ndarray) -> None:
    scale = block_formats.nvfp4_global_scale(float(np.abs(x).max()))
    back = block_formats.nvfp4_dynamic(x, scale)
    amax = np.abs(x.reshape(3, 2, 16)).max(axis=-1, keepdims=True)
    # The widest gap is 2 of 6 steps; an E4M3 scale is off by up to 2**-4 of itself (and by half its least
    # step of 2**-9 global scales where the block is tiny), which moves the grid's end as well.
    bound = amax * (1 / 6) * (1 + 2**-4) + amax * 2**-4 + 6 * 2**-9 * scale
    assert (np.abs(back - x).reshape(3, 2, 16) <= bound * (1 + 1e-5)).all()
    assert (back[x == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(amax=st.floats(0, 2.0**100, width=32))
def test_scales_are_positive_and_finite(amax: float) -> None:
    scale = block_formats.nvfp4_global_scale(amax)
    assert scale > 0
    assert np.isfinite(scale)
    block = block_formats.nvfp4_block_scale(np.array([0, amax], np.float32), scale).astype(np.float32)
    assert (block > 0).all()
    assert np.isfinite(block).all()


def test_the_largest_block_uses_the_whole_range_of_its_scale() -> None:
    scale = block_formats.nvfp4_global_scale(2.5)
    assert block_formats.nvfp4_block_scale(np.array([2.5]), scale).astype(np.float32) == 448
