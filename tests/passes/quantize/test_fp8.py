"""`quantize.fp8` on small graphs: static and weight-only, per channel and in blocks, refusals by name."""

from __future__ import annotations

import numpy as np
import onnx.checker
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pydantic
import pytest

from passes import numerics
from passes.base import PassContext, PassFailed
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.simulate import Simulate
from tests.support import runner
from tests.support.calibration import Batches, normal

ORT = PassContext(target=runner.CPU, calibration=normal((8, 64)))
TENSORRT = PassContext(target=runner.TENSORRT, calibration=normal((8, 64)))
RNG = np.random.default_rng(0)


def model_of(body: str, opset: int = 19, inputs: str = "float[m, 64] x", **weights: np.ndarray) -> ir.Model:
    outputs = "float[n, c, h, v] y" if "Conv" in body else "float[m, n] y"
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> agraph ({inputs}) => ({outputs}) {{ {body} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return ir.from_proto(proto)


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(np.float32)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def output(model: ir.Model, shape: tuple[int, ...] = (5, 64), **options: object) -> np.ndarray:
    x = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    onnx.checker.check_model(ir.to_proto(model))
    if options:
        return runner.session(model, **options).run(["y"], {"x": x})[0]
    return runner.run(model, {"x": x})["y"]


def through_e4m3(values: np.ndarray, amax: np.ndarray) -> np.ndarray:
    scale = numerics.symmetric_scale(amax, numerics.FP8_E4M3)
    return numerics.dequantize(numerics.quantize(values, scale, numerics.FP8_E4M3), scale)


@pytest.mark.parametrize(
    ("body", "shape", "axis"),
    [("y = MatMul(x, w)", (64, 48), 0), ("y = Gemm <transB = 1> (x, w)", (48, 64), 1)],
)
def test_weight_and_input_become_e4m3_with_explicit_zero_points(
    body: str, shape: tuple[int, int], axis: int
) -> None:
    w = weight(*shape)
    model = model_of(body, w=w)
    result = QuantizeFp8().apply(model, ORT)
    assert result.rewrites == 1
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", body.split()[2].split("(")[0]]
    assert all(len(node.inputs) == 3 for node in model.graph if "Linear" in node.op_type)
    x = np.random.default_rng(9).standard_normal((5, 64)).astype(np.float32)
    seen = np.max([np.abs(batch["x"]).max() for batch in ORT.calibration.feeds()])
    clean = through_e4m3(x, seen) @ (
        through_e4m3(w, np.abs(w).max(axis=axis, keepdims=True)) if axis == 0 else
        through_e4m3(w, np.abs(w).max(axis=axis, keepdims=True)).T
    )  # fmt: skip
    np.testing.assert_allclose(output(model), clean, rtol=1e-4, atol=1e-5)
    assert not np.allclose(output(model) * 1.1, clean, rtol=1e-2)


def test_onnxruntime_gives_the_same_with_its_optimizations_on() -> None:
    body = "a = MatMul(x, w) b = Add(a, c) y = MatMul(b, v)"
    model = model_of(body, w=weight(64, 64), c=weight(64), v=weight(64, 48))
    QuantizeFp8().apply(model, ORT)
    plain = output(model)
    fast = output(model, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    # Another order of float32 sums may move a value across an FP8 rounding boundary, no more.
    assert np.linalg.norm(fast - plain) < 0.01 * np.linalg.norm(plain)


@pytest.mark.parametrize("block_size", [32, 64])
def test_blocks_run_along_the_summed_axis(block_size: int) -> None:
    w = weight(64, 48)
    model = model_of("y = MatMul(x, w)", opset=19, w=w)
    QuantizeFp8(activations="none", block_size=block_size).apply(model, ORT)
    assert model.graph.opset_imports[""] == 21
    blocks = w.reshape(-1, block_size, 48)
    back = through_e4m3(blocks, np.abs(blocks).max(axis=1, keepdims=True)).reshape(64, 48)
    np.testing.assert_allclose(output(model), output(model_of("y = MatMul(x, w)", w=back)), rtol=1e-4, atol=1e-5)


def test_mxfp8_means_the_same_in_standard_onnx_and_in_tensorrts_own_operator() -> None:
    w = weight(64, 48)
    results = []
    for context in (ORT, TENSORRT):
        model = model_of("y = MatMul(x, w)", w=w)
        QuantizeFp8(activations="none", block_size=32, scales="power_of_two").apply(model, context)
        if context is TENSORRT:
            assert "TRT_MXFP8DequantizeLinear" in ops(model)
            assert Simulate().apply(model, context).rewrites == 1
        scales = model.graph.initializers.get("w.scales")
        if scales is not None:
            assert np.unique(np.frexp(scales.const_value.numpy())[0]) == 0.5
        results.append(output(model))
    # The same products, but one graph folds its weight and may sum in another order.
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_a_convolution_has_a_scale_per_output_channel() -> None:
    w = weight(6, 4, 3, 3) * np.arange(1, 7, dtype=np.float32)[:, None, None, None]
    model = model_of("y = Conv(x, w)", inputs="float[n, 4, 8, 8] x", w=w)
    context = PassContext(target=runner.CPU, calibration=normal((2, 4, 8, 8)))
    assert QuantizeFp8(activations="none").apply(model, context).rewrites == 1
    back = through_e4m3(w, np.abs(w).max(axis=(1, 2, 3), keepdims=True))
    expected = output(model_of("y = Conv(x, w)", inputs="float[n, 4, 8, 8] x", w=back), (2, 4, 8, 8))
    np.testing.assert_allclose(output(model, (2, 4, 8, 8)), expected, rtol=1e-4, atol=1e-5)


def test_a_second_run_changes_nothing() -> None:
    for options in ({}, {"activations": "none"}, {"activations": "none", "block_size": 32}):
        model = model_of("y = MatMul(x, w)", w=weight(64, 48))
        QuantizeFp8(**options).apply(model, ORT)
        before = ir.to_proto(model).SerializeToString()
        assert QuantizeFp8(**options).apply(model, ORT).rewrites == 0
        assert ir.to_proto(model).SerializeToString() == before


def test_an_input_shared_by_two_layers_is_quantized_once() -> None:
    model = model_of("a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)", w=weight(64, 48), v=weight(64, 48))
    assert QuantizeFp8().apply(model, ORT).rewrites == 2
    assert ops(model).count("QuantizeLinear") == 1


def test_what_stays_is_named_with_its_reason() -> None:
    model = model_of("y = MatMul(x, w)", w=weight(64, 48))
    skips = QuantizeFp8(skip=("MatMul",)).apply(model, ORT).skips
    assert [skip.reason for skip in skips] == ["named under skip"]
    model = model_of("y = MatMul(x, w)", inputs="float[m, 40] x", w=weight(40, 48))
    skips = QuantizeFp8(activations="none", block_size=32).apply(model, ORT).skips
    assert "K = 40, not a multiple of block_size 32" in skips[0].reason
    assert ops(model) == ["MatMul"]


def test_missing_data_and_conflicting_options_say_what_to_do() -> None:
    assert QuantizeFp8().requires_calibration()
    assert not QuantizeFp8(activations="none").requires_calibration()
    with pytest.raises(PassFailed, match="calibration"):
        QuantizeFp8().apply(model_of("y = MatMul(x, w)", w=weight(64, 48)), PassContext(target=runner.CPU))
    with pytest.raises(pydantic.ValidationError, match="activations: none"):
        QuantizeFp8(block_size=32)
    with pytest.raises(pydantic.ValidationError, match="blocks of 32"):
        QuantizeFp8(activations="none", scales="power_of_two")
    older = runner.TENSORRT.model_copy(update={"precisions": ("fp16", "int8"), "title": "NVIDIA A100 (Ampere)"})
    assert "FP8 needs Ada, Hopper or newer; this target is NVIDIA A100" in str(QuantizeFp8().check(older))
    assert QuantizeFp8().check(runner.TENSORRT) is None


def test_weights_of_zeros_and_with_nan() -> None:
    model = model_of("y = MatMul(x, w)", w=np.zeros((64, 48), np.float32))
    QuantizeFp8().apply(model, ORT)
    assert (output(model) == 0).all()
    bad = weight(64, 48)
    bad[5, 5] = np.inf
    model = model_of("y = MatMul(x, w)", w=bad)
    QuantizeFp8(activations="none").apply(model, ORT)
    with pytest.raises(PassFailed, match="weight 'w'"):
        model.graph.initializers["w.codes"].const_value.numpy()


def test_a_layer_that_never_activates_is_named_and_left_alone() -> None:
    body = "z = Mul(x, c) a = MatMul(z, w) b = MatMul(x, v) y = Add(a, b)"
    model = model_of(body, c=np.zeros(64, np.float32), w=weight(64, 48), v=weight(64, 48))
    result = QuantizeFp8().apply(model, ORT)
    assert result.rewrites == 1
    assert "never activates" in result.skips[0].reason
    assert np.isfinite(output(model)).all()


def correlated(seed: int, rows: int) -> np.ndarray:
    """Inputs as layers see them: few directions carry most of the energy."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(5).standard_normal((8, 64))
    return (rng.standard_normal((rows, 8)) @ mixing + 0.1 * rng.standard_normal((rows, 64))).astype(np.float32)


@pytest.mark.parametrize("body", ["y = MatMul(x, w)", "y = Gemm <transB = 1> (x, w)"])
@pytest.mark.parametrize("block_size", [0, 32])
def test_output_rounding_halves_the_error_on_inputs_it_has_not_seen(body: str, block_size: int) -> None:
    w = weight(64, 48) if "MatMul" in body else weight(48, 64)
    unseen = correlated(1, 200)
    original = runner.run(model_of(body, w=w), {"x": unseen})["y"]
    calibration = Batches(({"x": correlated(2, 100)}, {"x": correlated(3, 100)}))

    def error(rounding: str) -> float:
        model = model_of(body, w=w)
        quantize = QuantizeFp8(activations="none", block_size=block_size, rounding=rounding)
        assert quantize.apply(model, PassContext(target=runner.CPU, calibration=calibration)).rewrites == 1
        return float(np.linalg.norm(runner.run(model, {"x": unseen})["y"] - original))

    assert error("output") < 0.5 * error("nearest")
    assert QuantizeFp8(activations="none", rounding="output").requires_calibration()


def test_smoothing_moves_loud_channels_into_the_weights_and_keeps_the_function() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[m, 64] x) => (float[m, n] y) '
        "{ h = LayerNormalization (x, g, b) y = MatMul(h, w) }"
    )
    loud = np.ones(64, np.float32)
    loud[5] = 50
    rng = np.random.default_rng(4)
    numbers = {"g": loud, "b": np.zeros(64, np.float32), "w": rng.normal(size=(64, 16)).astype(np.float32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in numbers.items())
    data = normal((256, 64), 2)
    model = ir.from_proto(proto)
    expected = runner.run(model, data.batches[0])["y"]
    scales = {}
    for smooth in (None, 0.8):
        model = ir.from_proto(proto)
        options = QuantizeFp8(smooth=smooth)
        assert options.apply(model, runner.context(runner.TENSORRT, calibration=data)).rewrites == 1
        assert options.apply(model, runner.context(runner.TENSORRT, calibration=data)).rewrites == 0
        assert "Mul" not in [node.op_type for node in model.graph]
        pair = next(node for node in model.graph if node.op_type == "QuantizeLinear")
        scales[smooth] = float(pair.inputs[1].const_value.numpy())
        got = runner.run(model, data.batches[0])["y"]
        # e4m3 keeps 4 significant bits: each product errs by 2**-4 at most, the sum's errors partly cancel.
        assert np.linalg.norm(got - expected) < 2**-4 * np.linalg.norm(expected)
    assert scales[0.8] < scales[None] / 5
