from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes.base import PassFailed
from passes.quantize.int8 import QuantizeInt8
from passes.surgery.split_outliers import SplitOutliers, shares
from tests.support.calibration import Batches, normal
from tests.support.runner import TENSORRT, context, run

RNG = np.random.default_rng(5)
WIDE = 64


def model(body: str, output: str = "float[n,16] y", **weights: np.ndarray) -> ir.Model:
    """Products `float[n,16] x`; weights as given, others at random: a `(16, 64)`, b `(64,)`, c `(64, 16)`."""
    made = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[n,16] x) => ({output}) {{ {body} }}'
    )
    known = {value.name: value for node in made.graph for value in node.inputs if value is not None}
    shapes: dict[str, Sequence[int]] = {
        "a": (16, WIDE),
        "a2": (16, WIDE),
        "b": (WIDE,),
        "c": (WIDE, 16),
        "d": (16,),
    }
    for name, shape in shapes.items():
        if name not in known or known[name].producer() is not None:
            continue
        array = weights.get(name, RNG.normal(0, 0.25, shape).astype(np.float32))
        value = known[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        made.graph.register_initializer(value)
    return made


def hard(axis: int, transposed: bool = False) -> np.ndarray:
    """A weight whose 7th channel is 40 times the others: columns for axis 1, rows for axis 0."""
    shape = (16, WIDE) if axis == 1 else (WIDE, 16)
    array = RNG.normal(0, 0.25, shape).astype(np.float32)
    array.swapaxes(0, axis)[7] *= 40
    return np.ascontiguousarray(array.T) if transposed else array


def calibrated() -> Batches:
    return normal((32, 16))


FEED_FORWARD = "h = MatMul(x, a) k = Add(h, b) g = Gelu(k) y = MatMul(g, c)"
ERF = """
    h = MatMul(x, a) k = Add(h, b)
    root = Constant<value_float = 1.4142135>() one = Constant<value_float = 1.0>()
    half = Constant<value_float = 0.5>()
    q = Div(k, root) e = Erf(q) p = Add(e, one) r = Mul(k, p) g = Mul(r, half)
    y = MatMul(g, c)
"""
GATED = "h = MatMul(x, a) s = Sigmoid(h) m = Mul(h, s) u = MatMul(x, a2) g = Mul(m, u) y = MatMul(g, c)"


@pytest.mark.parametrize("body", [FEED_FORWARD, ERF, GATED])
def test_the_hardest_channel_is_shared_out_and_the_model_stays_what_it_was(body: str) -> None:
    before = model(body, a=hard(1))
    after = before.clone()
    result = SplitOutliers(columns=16).apply(after, context(calibration=calibrated()))
    assert result.rewrites == 1
    assert result.figures["columns added"] == 16
    assert float(result.figures["hardest channel after"]) < 0.2 * float(result.figures["hardest channel before"])
    feeds = {"x": RNG.normal(0, 1, (9, 16)).astype(np.float32)}
    expected, got = run(before, feeds)["y"], run(after, feeds)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    widths = {value.shape[-1] for node in after.graph for value in node.inputs if value is not None and value.shape}
    assert WIDE + 16 in widths
    assert not {"a", "c"} & set(after.graph.initializers)


def test_a_product_between_two_outliers_is_changed_for_both() -> None:
    made = model(
        "h = MatMul(x, a) g = Relu(h) i = MatMul(g, c) j = Relu(i) k = MatMul(j, a2) y = MatMul(k, c)", a=hard(1)
    )
    held = made.graph.initializers["c"]
    numbers = hard(0)
    numbers[:, 3] *= 40
    held.const_value = ir.tensor(numbers, name="c")
    after = made.clone()
    assert SplitOutliers(columns=16).apply(after, context(calibration=calibrated())).rewrites >= 2
    feeds = {"x": RNG.normal(0, 1, (9, 16)).astype(np.float32)}
    expected = run(made, feeds)["y"]
    np.testing.assert_allclose(run(after, feeds)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_transposed_gemm_gives_and_takes_columns_too() -> None:
    body = "h = Gemm<transB = 1>(x, a, b) g = Relu(h) y = Gemm<transB = 1>(g, c, d)"
    before = model(
        body, a=hard(1, transposed=True), c=np.ascontiguousarray(RNG.normal(0, 1, (16, WIDE)), np.float32)
    )
    after = before.clone()
    assert SplitOutliers(columns=16).apply(after, context(calibration=calibrated())).rewrites == 1
    feeds = {"x": RNG.normal(0, 1, (9, 16)).astype(np.float32)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("target", [None, TENSORRT])
def test_int8_errs_less_on_a_model_with_an_outlier(target: object) -> None:
    # As in real models: a channel that few rows reach, large in the activation and in the weight behind it.
    bias = np.zeros(WIDE, np.float32)
    bias[7] = -20
    columns, rows = hard(1), hard(0)
    columns[:, 7] /= 2
    exact = model(FEED_FORWARD, a=columns, b=bias, c=rows)
    feeds = {"x": RNG.normal(0, 1, (256, 16)).astype(np.float32)}
    expected = run(exact, feeds)["y"]
    given = context(TENSORRT, calibration=calibrated()) if target else context(calibration=calibrated())
    errors = []
    for split in (False, True):
        quantized = exact.clone()
        if split:
            SplitOutliers(columns=16).apply(quantized, given)
        # Seven bits, since a processor's kernels may saturate with eight.
        QuantizeInt8(activations="static", smooth=0.5, weight_bits=7).apply(quantized, given)
        lost = np.linalg.norm(run(quantized, feeds)["y"] - expected, axis=1)
        errors.append(np.median(lost / np.linalg.norm(expected, axis=1)))
    assert errors[1] < 0.7 * errors[0]


def test_channels_that_are_alike_stay() -> None:
    even = np.full((16, WIDE), 0.25, np.float32)
    result = SplitOutliers().apply(made := model(FEED_FORWARD, a=even, c=np.ones((WIDE, 16), np.float32)),
                                   context(calibration=calibrated()))  # fmt: skip
    assert result.rewrites == 0
    assert {"a", "b", "c"} <= set(made.graph.initializers)
    assert any("no channel stands out" in item.reason for item in result.skips)


@pytest.mark.parametrize(
    ("body", "output", "reason"),
    [
        ("y = MatMul(x, a)", "float[n,64] y", "its input comes from 'x', which no product makes"),
        (
            "h = MatMul(x, a) g = Softmax(h) y = MatMul(g, c)",
            "float[n,16] y",
            "comes through Softmax, whose channels",
        ),
        (
            "h = MatMul(x, a) g = Relu(h) z = Neg(g) y = MatMul(g, c)",
            "float[n,16] y, float[n,64] z",
            "read by Neg too",
        ),
        ("h = MatMul(x, a) y = MatMul(h, c)", "float[n,16] y, float[n,64] h", "'h' is an output of the model"),
        (
            "h = MatMul(x, a) g = Mul(h, b) y = MatMul(g, c)",
            "float[n,16] y",
            "comes from 'b', which no product makes",
        ),
    ],
)
def test_what_cannot_be_split_is_named_with_its_reason(body: str, output: str, reason: str) -> None:
    made = model(body, output, a=hard(1))
    before = ir.to_onnx_text(made)
    result = SplitOutliers().apply(made, context(calibration=calibrated()))
    assert result.rewrites == 0
    assert any(reason in item.reason for item in result.skips), result.skips
    assert ir.to_onnx_text(made) == before


def test_a_gate_of_one_channel_is_refused() -> None:
    made = model("h = MatMul(x, a) u = MatMul(x, e) g = Mul(h, u) y = MatMul(g, c)", a=hard(1))
    gate = next(value for node in made.graph for value in node.inputs if value is not None and value.name == "e")
    gate.const_value = ir.tensor(np.ones((16, 1), np.float32), name="e")
    gate.type, gate.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((16, 1))
    made.graph.register_initializer(gate)
    result = SplitOutliers().apply(made, context(calibration=calibrated()))
    assert result.rewrites == 0
    assert any("channels are not those of the products behind it" in item.reason for item in result.skips)


def test_without_data_it_says_so() -> None:
    with pytest.raises(PassFailed, match="calibration"):
        SplitOutliers().apply(model(FEED_FORWARD), context())


def test_a_value_without_a_range_is_named() -> None:
    body = "h = MatMul(x, a) g = Relu(h) y = MatMul(g, c) i = MatMul(x, a2) j = Relu(i) z = MatMul(j, c)"
    made = model(body, "float[n,16] y, float[n,16] z", a=hard(1), a2=np.zeros((16, WIDE), np.float32))
    result = SplitOutliers().apply(made, context(calibration=calibrated()))
    assert result.rewrites == 1
    assert any("never activates" in item.reason for item in result.skips)


@pytest.mark.tensorrt
def test_what_comes_out_builds_in_int8(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    made = model(FEED_FORWARD, a=hard(1))
    given = context(TENSORRT, calibration=calibrated())
    assert SplitOutliers(columns=16).apply(made, given).rewrites == 1
    QuantizeInt8(activations="static", smooth=0.6).apply(made, given)
    assert build(made, tmp_path).details["counts"] == {"matmuls": {"int8": 2}}


def test_shares_go_to_the_hardest_first() -> None:
    assert shares(np.array([1.0, 8.0, 2.0]), 3).tolist() == [1, 4, 1]
    assert shares(np.zeros(3), 2).sum() == 5
