"""Properties of the number formats: bounds, zero, order, packing, and agreement with ONNX's own reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.helper
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from passes import numerics
from passes.numerics import FORMATS, FP4_E2M1, FP8_E4M3, FP8_E5M2, INT4, INT8, UINT4, UINT8

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=40), elements=st.floats(-1e4, 1e4, width=32))
SYMMETRIC = [INT8, INT4, FP8_E4M3, FP8_E5M2, FP4_E2M1]
INTEGERS = [INT8, UINT8, INT4, UINT4]
ROUNDING = 1 + 2**-20  # float32 keeps 24 significant bits; division and product each round once


def half_step(grid: numerics.Format, q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Half the distance between neighbours on the grid around `q`, in real units."""
    if not grid.floating:
        return np.asarray(scale, np.float32) / 2
    info = ml_dtypes.finfo(grid.dtype)
    magnitude = np.maximum(np.abs(q.astype(np.float32)), float(info.tiny))
    step = np.exp2(np.floor(np.log2(magnitude)) - info.nmant)
    return step * np.asarray(scale, np.float32) / 2


@pytest.mark.parametrize("grid", SYMMETRIC, ids=lambda g: g.name)
@settings(max_examples=60, deadline=None)
@given(x=FLOATS)
def test_a_symmetric_round_trip_is_off_by_at_most_half_a_step(grid: numerics.Format, x: np.ndarray) -> None:
    scale = numerics.symmetric_scale(np.abs(x).max(), grid)
    q = numerics.quantize(x, scale, grid)
    error = np.abs(numerics.dequantize(q, scale) - x)
    assert (error <= half_step(grid, q, scale) * ROUNDING + np.abs(x) * 2**-22).all()


@pytest.mark.parametrize("grid", INTEGERS, ids=lambda g: g.name)
@settings(max_examples=60, deadline=None)
@given(x=FLOATS)
def test_an_asymmetric_round_trip_is_off_by_at_most_half_a_step_and_zero_is_exact(
    grid: numerics.Format, x: np.ndarray
) -> None:
    scale, zero_point = numerics.asymmetric_scale(x.min(), x.max(), grid)
    q = numerics.quantize(x, scale, grid, zero_point)
    error = np.abs(numerics.dequantize(q, scale, zero_point) - x)
    # The zero point is rounded too, so the range's ends may fall half a step outside the grid.
    inside = (q.astype(np.int32) > numerics.stored_range(grid)[0]) & (
        q.astype(np.int32) < numerics.stored_range(grid)[1]
    )
    bound = np.where(inside, scale / 2, scale) * ROUNDING + np.abs(x) * 2**-20
    assert (error <= bound).all()
    zero = numerics.quantize(np.zeros(1, np.float32), scale, grid, zero_point)
    assert numerics.dequantize(zero, scale, zero_point) == 0


@pytest.mark.parametrize("grid", SYMMETRIC, ids=lambda g: g.name)
@settings(max_examples=60, deadline=None)
@given(x=FLOATS)
def test_order_and_sign_are_kept_and_zero_stays_zero(grid: numerics.Format, x: np.ndarray) -> None:
    values = np.sort(x.ravel())
    scale = numerics.symmetric_scale(np.abs(values).max(), grid)
    q = numerics.quantize(values, scale, grid).astype(np.float32)
    assert (np.diff(q) >= 0).all()
    mirrored = numerics.quantize(-values, scale, grid).astype(np.float32)
    np.testing.assert_array_equal(mirrored, -q)
    assert numerics.quantize(np.float32(0), scale, grid).astype(np.float32) == 0


@pytest.mark.parametrize("grid", [INT4, UINT4, FP4_E2M1], ids=lambda g: g.name)
@settings(max_examples=60, deadline=None)
@given(codes=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=9), elements=st.integers(0, 15)))
def test_unpacking_what_was_packed_gives_it_back(grid: numerics.Format, codes: np.ndarray) -> None:
    packed = np.append(codes.ravel(), np.uint8(0))[: (codes.size + 1) // 2 * 2]
    as_bytes = (packed[0::2] | (packed[1::2] << 4)).astype(np.uint8)
    elements = numerics.unpack_4bit(as_bytes, codes.shape, grid)
    np.testing.assert_array_equal(numerics.pack_4bit(elements), as_bytes)
    assert elements.shape == codes.shape


@pytest.mark.parametrize("grid", [INT4, UINT4, FP4_E2M1], ids=lambda g: g.name)
def test_packing_agrees_with_onnx(grid: numerics.Format) -> None:
    import onnx_ir as ir

    kinds = {"int4": ir.DataType.INT4, "uint4": ir.DataType.UINT4, "fp4_e2m1": ir.DataType.FLOAT4E2M1}
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 3
    zero_point = np.array(8, grid.dtype) if grid is UINT4 else None
    elements = numerics.quantize(x, np.float32(0.7), grid, zero_point)
    theirs = ir.Tensor(elements, dtype=kinds[grid.name])
    assert theirs.tobytes() == numerics.pack_4bit(elements).tobytes()
    np.testing.assert_array_equal(
        numerics.unpack_4bit(np.frombuffer(theirs.tobytes(), np.uint8), x.shape, grid), elements
    )


@pytest.mark.parametrize("name", ["int8", "uint8", "fp8_e4m3", "fp8_e5m2"])
def test_quantize_agrees_bit_for_bit_with_the_onnx_reference(name: str) -> None:
    grid = FORMATS[name]
    onnx_type = {"int8": "int8", "uint8": "uint8", "fp8_e4m3": "float8e4m3fn", "fp8_e5m2": "float8e5m2"}[name]
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 19]>
        g (float[n] x, float s, {onnx_type} z) => (float[n] y) {{
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }}"""
    )
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=500) * 40, [0, 1e6, -1e6, 0.5, 1.5, 2.5, -0.5]]).astype(np.float32)
    scale = np.float32(0.25)
    zero_point = np.array(3 if not grid.floating else 0, grid.dtype)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x, "s": scale, "z": zero_point})
    given_point = None if grid.floating else zero_point
    ours = numerics.dequantize(numerics.quantize(x, scale, grid, given_point), scale, given_point)
    np.testing.assert_array_equal(ours, expected)


@settings(max_examples=200, deadline=None)
@given(amax=st.floats(2**-100, 2**100, width=32))
def test_a_power_of_two_scale_is_the_smallest_that_does_not_saturate(amax: float) -> None:
    for grid in (FP8_E4M3, FP4_E2M1):
        scale = float(numerics.power_of_two_scale(np.float32(amax), grid).astype(np.float32))
        assert np.log2(scale) == np.floor(np.log2(scale))
        assert amax / scale <= grid.highest < amax / (scale / 2)
        floor = float(numerics.power_of_two_scale(np.float32(amax), grid, saturate=True).astype(np.float32))
        assert floor == 2.0 ** (np.floor(np.log2(amax)) - grid.exponent)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("amax", [0.0, 1e-30, 1e-7, 1.0, 3e38])
def test_a_stored_scale_is_positive_and_finite_whatever_the_range(amax: float, dtype: type) -> None:
    scale = numerics.symmetric_scale(np.array([amax]), INT4, dtype)
    assert scale.dtype == np.dtype(dtype)
    assert (scale.astype(np.float32) > 0).all()
    assert np.isfinite(scale.astype(np.float32)).all()


def test_a_constant_zero_block_stays_zero() -> None:
    zeros = np.zeros((4, 8), np.float32)
    for grid in SYMMETRIC:
        scale = numerics.symmetric_scale(np.abs(zeros).max(axis=1, keepdims=True), grid)
        assert (numerics.dequantize(numerics.quantize(zeros, scale, grid), scale) == 0).all()


def test_values_beyond_the_range_saturate_and_nan_does_not_become_a_number_out_of_nowhere() -> None:
    wild = np.array([np.inf, -np.inf, 1e30, np.nan], np.float32)
    ints = numerics.quantize(wild, np.float32(1), INT8).astype(np.int32)
    np.testing.assert_array_equal(ints, [127, -128, 127, 0])
    floats = numerics.quantize(wild, np.float32(1), FP8_E4M3).astype(np.float32)
    np.testing.assert_array_equal(floats, [448, -448, 448, np.nan])


def test_a_scale_a_tenth_too_large_breaks_the_half_step_bound() -> None:
    x = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    scale = numerics.symmetric_scale(np.abs(x).max(), INT8)
    q = numerics.quantize(x, scale, INT8)
    assert (np.abs(numerics.dequantize(q, scale * np.float32(1.1)) - x) > scale / 2).any()
