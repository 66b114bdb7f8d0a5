"""Scaling input channels keeps the model's function; the division goes into what makes the input where it can."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes.quantize._channel_factors import (
    EXPONENTS,
    apply_factors,
    by_input,
    least_error_factors,
    smooth_factors,
)
from passes.quantize._weights import find_weights
from tests.support import runner

CHANNELS = 16


def model_of(body: str, outputs: str = "float[m, n] y", **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[m, {CHANNELS}] x) => ({outputs}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    numbers = {
        "g": rng.uniform(0.5, 2, CHANNELS), "b": rng.normal(size=CHANNELS), "v": rng.normal(size=(16, CHANNELS)),
        "w": rng.normal(size=(CHANNELS, 8)), "u": rng.normal(size=(8, CHANNELS)), "s": np.array([-1, CHANNELS]),
        **weights,
    }  # fmt: skip
    for name, array in numbers.items():
        if name in body:
            kind = np.int64 if name == "s" else np.float32
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(kind), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def scaled(body: str, outputs: str = "float[m, n] y") -> tuple[ir.Model, dict[str, int]]:
    """The model with channels of the last product's input divided; its outputs are checked to be the same."""
    model = model_of(body, outputs)
    x = np.random.default_rng(1).normal(size=(5, CHANNELS)).astype(np.float32)
    before = runner.run(model, {"x": x})
    weights, _ = find_weights(model, ("MatMul", "Gemm"), ())
    groups = by_input(model, weights)
    name = next(name for name, held in groups.items() if held[0].name in ("w", "u"))
    factors = np.random.default_rng(2).uniform(0.25, 4, CHANNELS).astype(np.float32)
    counts = apply_factors(model, groups, {name: factors})
    after = runner.run(model, {"x": x})
    for output, expected in before.items():
        # Two float32 products and sums of 16 terms in another order of roundings.
        np.testing.assert_allclose(after[output], expected, rtol=1e-4, atol=1e-4)
        assert not np.allclose(after[output], expected * 1.1, rtol=1e-4, atol=1e-4)
    return model, counts


NORM = "h = LayerNormalization (x, g, b) "


@pytest.mark.parametrize(
    "body",
    [
        NORM + "y = MatMul(h, w)",
        "h = RMSNormalization (x, g) y = MatMul(h, w)",
        NORM + "r = Reshape(h, s) y = MatMul(r, w)",
        NORM + "y = Gemm <transB = 1> (h, u)",
        "h = Gemm <transB = 0> (x, v, b) y = MatMul(h, w)",
        "p = MatMul(x, v) h = Add(p, b) y = MatMul(h, w)",
        NORM + "c = MatMul(h, w) d = MatMul(h, w) y = Add(c, d)",
    ],
)
def test_the_division_goes_into_what_makes_the_input(body: str) -> None:
    before = [node.op_type for node in model_of(body).graph]
    model, counts = scaled(body)
    assert counts == {"folded": 1, "multiplied": 0}
    assert [node.op_type for node in model.graph] == before


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = MatMul(x, w)", "float[m, n] y"),
        ("h = Relu(x) y = MatMul(h, w)", "float[m, n] y"),
        (NORM + "y = MatMul(h, w) z = Relu(h)", "float[m, n] y, float[m, 16] z"),
        (NORM + "y = MatMul(h, w)", f"float[m, n] y, float[m, {CHANNELS}] h"),
        ("h = Softmax <axis = 0> (x) y = MatMul(h, w)", "float[m, n] y"),
        ("p = MatMul(x, v) o = Constant <value_float = 0.5> () h = Add(p, o) y = MatMul(h, w)", "float[m, n] y"),
        ("p = MatMul(x, v) h = Add(p, b) z = Relu(p) y = MatMul(h, w)", "float[m, n] y, float[m, k] z"),
    ],
)  # fmt: skip
def test_a_value_that_others_read_or_that_nothing_scales_gets_a_mul(body: str, outputs: str) -> None:
    model, counts = scaled(body, outputs)
    assert counts == {"folded": 0, "multiplied": 1}
    assert [node.op_type for node in model.graph].count("Mul") == 1


def test_a_chosen_exponent_errs_less_than_none_and_equal_channels_need_none() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 24)).astype(np.float32)

    def restore(values: np.ndarray) -> np.ndarray:
        step = np.abs(values).max(axis=0, keepdims=True) / 7
        return (np.rint(values / step) * step).astype(np.float32)

    def error(factors: np.ndarray, own: np.ndarray) -> float:
        change = restore(weight * factors[:, None]) / factors[:, None] - weight
        return float(np.sum(change * (own @ change)))

    loud = np.diag(np.where(np.arange(32) < 2, 400.0, 1.0))
    factors = least_error_factors([weight], loud, restore)
    assert factors is not None
    assert error(factors, loud) < 0.7 * error(np.ones(32, np.float32), loud)
    tried = [np.diag(loud) ** (exponent / 2) for exponent in EXPONENTS]
    tried = [(each / np.exp(np.log(each).mean())).astype(np.float32) for each in tried]
    assert error(factors, loud) == pytest.approx(min(error(each, loud) for each in tried), rel=1e-6)
    assert least_error_factors([weight], np.eye(32), restore) is None


def test_smoothing_factors_are_the_formula_with_geometric_mean_one() -> None:
    weight = np.array([[1, -4], [2, 1], [0, 0], [1, 1]], np.float32)
    amax = np.array([8, 2, 5, 0], np.float32)
    factors = smooth_factors([weight], amax, 0.5)
    plain = np.sqrt(amax[:2] / np.array([4, 2]))
    np.testing.assert_allclose(factors[:2], plain / np.sqrt(plain.prod()), rtol=1e-6)
    assert factors[2] == factors[3] == 1
