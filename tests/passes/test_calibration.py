"""Ranges learned from data: the methods, the warnings, and what bad data does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes import numerics
from passes.base import PassFailed
from passes.calibration import Method, MethodName, Range, Ranges, collect
from tests.support.calibration import Batches, normal
from tests.support.runner import context

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 16] x) => (float[n, 16] y) {
    double = Add(x, x)
    dead = Sub(x, x)
    y = Relu(double)
}
"""


MINMAX = Method()


def ranges(batches: Batches, method: Method = MINMAX, symmetric: bool = False, **options: object) -> Ranges:
    model = ir.from_onnx_text(MODEL)
    return collect(
        model, ["x", "double"], context(calibration=batches), method, numerics.UINT8, symmetric=symmetric, **options
    )  # type: ignore[arg-type]


def heavy_tailed() -> Batches:
    rng = np.random.default_rng(3)
    batches = []
    for _ in range(4):
        x = rng.normal(0, 1, (256, 16)).astype(np.float32)
        x[0, 0] = 200.0
        batches.append({"x": x})
    return Batches(tuple(batches))


def error(found: Range, values: np.ndarray) -> float:
    scale, zero = numerics.asymmetric_scale(np.asarray(found.low), np.asarray(found.high), numerics.UINT8)
    back = numerics.dequantize(numerics.quantize(values, scale, numerics.UINT8, zero), scale, zero)
    return float(np.square(back - values).sum())


def test_minmax_keeps_every_value_of_inputs_and_inner_values() -> None:
    data = normal((64, 16))
    every = np.concatenate([batch["x"] for batch in data.batches])
    found = ranges(data)
    assert (found.of["x"].low, found.of["x"].high) == (every.min(), every.max())
    assert (found.of["double"].low, found.of["double"].high) == (2 * every.min(), 2 * every.max())
    assert (found.samples, found.batches) == (256, 4)


@pytest.mark.parametrize("name", ["percentile", "entropy"])
def test_an_outlier_is_cut_by_the_clipping_methods(name: MethodName) -> None:
    found = ranges(heavy_tailed(), Method(name, percentile=99.9)).of["x"]
    assert 2 < found.high < 50
    assert found.observed_high == 200


def test_mse_has_the_least_error_of_all_methods() -> None:
    data = heavy_tailed()
    every = np.concatenate([batch["x"] for batch in data.batches])
    names: tuple[MethodName, ...] = ("minmax", "moving_average", "percentile", "entropy", "mse")
    errors = {name: error(ranges(data, Method(name)).of["x"], every) for name in names}
    assert min(errors, key=lambda name: errors[name]) == "mse"
    assert errors["mse"] < errors["minmax"]


def test_moving_average_lies_between_the_batches_extremes() -> None:
    data = Batches(tuple({"x": np.full((4, 16), value, np.float32)} for value in (1.0, 3.0)))
    assert ranges(data, Method("moving_average", momentum=0.5)).of["x"].high == 2.0


def test_a_symmetric_mse_range_is_a_mirror_image() -> None:
    found = ranges(heavy_tailed(), Method("mse"), symmetric=True).of["x"]
    assert found.low == -found.high


def test_calibration_is_deterministic() -> None:
    once, twice = (ranges(heavy_tailed(), Method("entropy")) for _ in range(2))
    assert once == twice


def test_channel_statistics_and_rows_follow_the_channel_axis() -> None:
    data = normal((64, 16))
    every = np.concatenate([batch["x"] for batch in data.batches])
    found = ranges(data, channel_axes={"x": -1}, rows=32).of["x"]
    assert found.channel_amax is not None
    assert found.channel_mean is not None
    assert found.rows is not None
    np.testing.assert_array_equal(found.channel_amax, np.abs(every).max(axis=0))
    np.testing.assert_allclose(found.channel_mean, every.mean(axis=0), rtol=0, atol=2**-20)
    assert found.rows.shape == (32, 16)


def test_a_divided_value_is_counted_divided() -> None:
    data, divisor = normal((64, 16)), np.linspace(1, 4, 16).astype(np.float32)
    every = np.concatenate([batch["x"] for batch in data.batches]) / divisor
    found = ranges(data, channel_axes={"x": -1}, divisors={"x": divisor}).of["x"]
    assert (found.low, found.high) == (every.min(), every.max())


def test_without_calibration_data_the_error_says_what_to_do() -> None:
    with pytest.raises(PassFailed, match=r"there is no calibration data.*Add `calibration:`"):
        collect(ir.from_onnx_text(MODEL), ["x"], context(), Method(), numerics.INT8, symmetric=True)


def test_one_sample_is_warned_about() -> None:
    notes = ranges(normal((1, 16), batches=1)).notes
    assert any("1 sample" in note for note in notes)


def test_ranges_that_still_grow_are_warned_about() -> None:
    batches = tuple({"x": np.full((4, 16), value, np.float32)} for value in (1.0, -1.0, 5.0))
    assert any("still grew at the last calibration batch" in note for note in ranges(Batches(batches)).notes)
    assert not any("still grew" in note for note in ranges(Batches((*batches, batches[0]))).notes)


def test_a_value_that_never_activates_is_named_and_has_no_range() -> None:
    model = ir.from_onnx_text(MODEL)
    found = collect(
        model, ["x", "dead"], context(calibration=normal((8, 16))), Method(), numerics.INT8, symmetric=True
    )
    assert set(found.of) == {"x"}
    assert "never activates" in found.unusable["dead"]
    assert any("'dead'" in note for note in found.notes)


def test_nan_in_a_batch_is_named_with_the_batch() -> None:
    data = normal((8, 16), batches=3)
    data.batches[1]["x"][2, 3] = np.nan
    with pytest.raises(PassFailed, match="'x' holds NaN in calibration batch 2"):
        ranges(data)


def test_a_constant_value_is_warned_about() -> None:
    data = Batches(tuple({"x": np.full((4, 16), 2.0, np.float32)} for _ in range(2)))
    assert any("constant during calibration" in note for note in ranges(data).notes)


def test_many_values_are_observed_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = normal((64, 16))
    monkeypatch.setattr("passes.calibration.BATCH_BYTES", 64 * 16 * 4)
    text = "\n".join(f"v{i} = Add(x, x)" for i in range(20))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[n, 16] x) => (float[n, 16] y) {{ {text} y = Relu(x) }}'
    )
    asked: list[int] = []
    observe = Batches.observe

    def counting(self: Batches, model: ir.Model, values: list[str]) -> object:
        asked.append(len(values))
        return observe(self, model, values)

    monkeypatch.setattr(Batches, "observe", counting)
    found = collect(
        model, [f"v{i}" for i in range(20)], context(calibration=data), Method(), numerics.INT8, symmetric=True
    )
    assert len(found.of) == 20
    assert max(asked[1:]) <= 1
