"""The search over NVFP4 block scales finds what trying every scale in float64 finds, in every layout and type."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from passes import block_formats, numerics
from passes.quantize import _float_blocks
from passes.quantize._float_blocks import FloatBlocks, amax_of, nvfp4, quantize_float_blocks
from passes.quantize._nvfp4_search import TRIALS
from passes.quantize._tiles import layout

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def draw(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(3)
    numbers = rng.standard_normal(shape) * 0.02
    if kind == "blocks of every size":  # the smallest reach the end of E4M3's range, where steps saturate
        numbers = numbers * np.exp(3 * rng.standard_normal(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    if kind == "one outlier":
        numbers.flat[7] = 1000
    if kind == "few numbers":  # ties everywhere
        numbers = np.round(numbers * 200) / 64
    return numbers


def quantized(weight: np.ndarray, axis: int, *, search: bool) -> tuple[FloatBlocks, np.float32]:
    scale = block_formats.nvfp4_global_scale(amax_of(weight))
    choose = nvfp4(scale, search=search)
    return quantize_float_blocks(weight, axis, 16, numerics.FP4_E2M1, choose, numerics.FP8_E4M3.dtype), scale


def plain(blocks: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """E2M1 codes by division, clipping and a cast; `scale` in real units, `(outer, 1, inner)`."""
    steps = blocks.astype(np.float32) / scale
    return np.clip(steps, -6, 6).astype(ml_dtypes.float4_e2m1fn)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["normal", "blocks of every size", "one outlier", "few numbers"])
@pytest.mark.parametrize(("shape", "axis"), [((64, 40), 0), ((40, 64), 1), ((64, 7), 0), ((3, 32, 6), 1)])
def test_no_trial_errs_less_than_the_one_chosen(shape: tuple[int, ...], axis: int, kind: str, dtype: type) -> None:
    weight = draw(kind, shape).astype(dtype)
    made, whole = quantized(weight, axis, search=True)
    outer, _, inner = layout(shape, axis, 16)
    blocks = weight.reshape(outer, 16, inner)
    amax = np.abs(blocks.astype(np.float32)).max(axis=1, keepdims=True)

    def error(scale: np.ndarray) -> np.ndarray:
        back = plain(blocks, scale).astype(np.float64) * scale
        return np.square(back - blocks.astype(np.float64)).sum(axis=1)

    chosen = made.scales.astype(np.float32)[:, None, :] * whole
    trials = [
        block_formats.nvfp4_block_scale(amax, whole, highest).astype(np.float32) * whole for highest in TRIALS
    ]
    least = np.min([error(trial) for trial in trials], axis=0)
    # Sixteen squares summed in float32, 24 significant bits.
    assert (error(chosen) <= least * (1 + 2.0**-18)).all()
    assert any((error(trial) > least * 1.01).any() for trial in trials) or kind == "few numbers"
    np.testing.assert_array_equal(made.codes, numerics.pack_4bit(plain(blocks, chosen)))


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((128, 600), 0), ((600, 128), 1), ((128, 601), 0), ((5, 128, 64), 1)])
def test_many_tiles_give_what_one_tile_gives(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], axis: int, search: bool
) -> None:
    weight = draw("normal", shape).astype(np.float16)
    made = []
    for elements in (1 << 24, 1 << 12):
        monkeypatch.setattr(_float_blocks, "TILE_ELEMENTS", elements)
        made.append(quantized(weight, axis, search=search)[0])
    np.testing.assert_array_equal(made[0].codes, made[1].codes)
    np.testing.assert_array_equal(made[0].scales, made[1].scales)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("bad", "axis"), itertools.product([np.nan, np.inf, -np.inf], [0, 1]))
def test_a_weight_with_nan_or_infinity_is_refused(bad: float, axis: int, dtype: type) -> None:
    weight = draw("normal", (64, 64)).astype(dtype)
    weight[40, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_float_blocks(
            weight, axis, 16, numerics.FP4_E2M1, nvfp4(np.float32(1e-4), search=True), numerics.FP8_E4M3.dtype
        )


def test_zeros_keep_the_least_scale_and_stay_zero() -> None:
    made, _ = quantized(np.zeros((32, 8), np.float16), 0, search=True)
    assert (made.codes == 0).all()
    assert (made.scales.astype(np.float32) == block_formats.LEAST_SCALE).all()
