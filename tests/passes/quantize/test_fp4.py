"""`quantize.fp4`, judged through `quantize.simulate`: NVFP4 and MXFP4 weights, dynamic activations."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes import block_formats, numerics
from passes.base import PassContext, PassFailed
from passes.quantize.fp4 import QuantizeFp4
from passes.quantize.simulate import Simulate
from tests.support import runner
from tests.support.calibration import Batches, normal

BLACKWELL = runner.TENSORRT.model_copy(update={"precisions": ("fp16", "fp8", "fp4")})
CONTEXT = PassContext(target=BLACKWELL, calibration=normal((8, 64)))
RNG = np.random.default_rng(0)


def model_of(body: str, kind: str = "float", columns: int = 64, **weights: np.ndarray) -> ir.Model:
    signature = f"({kind}[m, {columns}] x) => ({kind}[m, n] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {signature} {{ {body} }}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return ir.from_proto(proto)


def weight(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(dtype)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def nvfp4(w: np.ndarray) -> np.ndarray:
    """What a `(K, N)` weight becomes in NVFP4, by the plain formula."""
    scale = block_formats.nvfp4_global_scale(float(np.abs(w).max()))
    return np.ascontiguousarray(block_formats.nvfp4_dynamic(np.ascontiguousarray(w.T), scale).T)


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_nvfp4_weights_are_two_levels_of_dequantize_linear_and_simulate_bit_for_bit(
    kind: str, transposed: bool
) -> None:
    dtype = np.float32 if kind == "float" else np.float16
    w = weight(64, 48, dtype=dtype)
    stored = np.ascontiguousarray(w.T) if transposed else w
    body = "y = Gemm <transB = 1> (x, w)" if transposed else "y = MatMul(x, w)"
    model = model_of(body, kind, w=stored)
    assert QuantizeFp4(algorithm="rtn").apply(model, CONTEXT).rewrites == 1
    chain = ["DequantizeLinear", *(["Cast"] if kind == "float16" else []), "DequantizeLinear"]
    assert ops(model)[:-1] == chain
    codes = model.graph.initializers["w.codes"]
    assert (codes.dtype, list(codes.shape)) == (ir.DataType.FLOAT4E2M1, list(stored.shape))
    assert Simulate().apply(model, CONTEXT).rewrites == 1
    (folded,) = (value.const_value.numpy() for value in model.graph.initializers.values())
    if kind == "float":
        np.testing.assert_array_equal(folded.T if transposed else folded, nvfp4(w))
    else:
        # The step itself is rounded to float16 by the Cast: 11 bits, and the product once more.
        np.testing.assert_allclose(folded.T if transposed else folded, nvfp4(w.astype(np.float32)), rtol=2**-9)


def test_dynamic_activations_simulate_bit_for_bit() -> None:
    model = model_of("y = MatMul(x, w)", w=np.eye(64, dtype=np.float32))
    assert QuantizeFp4(activations="dynamic", skip=()).apply(model, CONTEXT).rewrites == 1
    assert ops(model).count("TRT_FP4DynamicQuantize") == 1
    assert [pattern.found for pattern in Simulate().apply(model, CONTEXT).patterns] == [1, 1]
    x = np.random.default_rng(3).standard_normal((7, 64)).astype(np.float32)
    x[2, 16:32] = 0
    name = next(node.outputs[0].name for node in model.graph if node.op_type == "Cast" and node is model.graph[-2])
    seen = max(float(np.abs(batch["x"]).max()) for batch in CONTEXT.calibration.feeds())
    expected = block_formats.nvfp4_dynamic(x, block_formats.nvfp4_global_scale(seen))
    np.testing.assert_array_equal(runner.run(model, {"x": x}, [name])[name], expected)
    assert not np.array_equal(expected, block_formats.nvfp4_dynamic(x, np.float32(0.01)))


def test_mxfp4_scales_are_powers_of_two() -> None:
    w = weight(64, 48)
    model = model_of("y = MatMul(x, w)", w=w)
    QuantizeFp4(format="mxfp4").apply(model, CONTEXT)
    assert np.unique(np.frexp(model.graph.initializers["w.scales"].const_value.numpy())[0]) == 0.5
    Simulate().apply(model, CONTEXT)
    (folded,) = (value.const_value.numpy() for value in model.graph.initializers.values())
    blocks = w.reshape(2, 32, 48)
    scale = numerics.power_of_two_scale(np.abs(blocks).max(axis=1, keepdims=True), numerics.FP4_E2M1)
    steps = scale.astype(np.float32)
    np.testing.assert_array_equal(folded.reshape(2, 32, 48), block_formats.round_e2m1(blocks / steps) * steps)


def test_the_search_loses_to_nothing() -> None:
    w = weight(256, 64)

    def error(algorithm: str) -> float:
        model = model_of("y = MatMul(x, w)", columns=256, w=w)
        QuantizeFp4(algorithm=algorithm).apply(model, CONTEXT)
        Simulate().apply(model, CONTEXT)
        (folded,) = (value.const_value.numpy() for value in model.graph.initializers.values())
        return float(np.linalg.norm(folded - w) / np.linalg.norm(w))

    assert error("mse") < 0.97 * error("rtn")
    assert 0.05 < error("mse") < 0.1  # a uniform spread over E2M1's steps gives 0.09


def test_a_second_run_changes_nothing() -> None:
    for options in ({}, {"activations": "dynamic"}, {"format": "mxfp4"}):
        model = model_of("y = MatMul(x, w)", w=weight(64, 48))
        QuantizeFp4(**options).apply(model, CONTEXT)
        before = ir.to_proto(model).SerializeToString()
        assert QuantizeFp4(**options).apply(model, CONTEXT).rewrites == 0
        assert ir.to_proto(model).SerializeToString() == before
        Simulate().apply(model, CONTEXT)
        simulated = ir.to_proto(model).SerializeToString()
        assert Simulate().apply(model, CONTEXT).rewrites == 0
        assert ir.to_proto(model).SerializeToString() == simulated


def test_what_stays_is_named_with_its_reason() -> None:
    model = model_of("y = MatMul(x, w)", columns=40, w=weight(40, 48))
    result = QuantizeFp4().apply(model, CONTEXT)
    assert (result.rewrites, ops(model)) == (0, ["MatMul"])
    assert "K = 40, not a positive multiple of nvfp4's block of 16" in result.skips[0].reason


def test_targets_without_fp4_are_refused_with_what_to_use() -> None:
    ada = runner.TENSORRT.model_copy(
        update={"precisions": ("fp16", "fp8", "int8", "int4"), "title": "NVIDIA L40S (Ada)"}
    )
    assert (
        QuantizeFp4().check(ada)
        == "FP4 needs Blackwell; this target is NVIDIA L40S (Ada): use fp8 or int4 or int8."
    )
    assert QuantizeFp4().check(BLACKWELL) is None
    assert "nvfp4 only" in str(QuantizeFp4(format="mxfp4", activations="dynamic").check(BLACKWELL))
    rules = BLACKWELL.quantize.model_copy(update={"block_sizes": {"fp4": (16,)}})
    assert "use format: nvfp4" in str(
        QuantizeFp4(format="mxfp4").check(BLACKWELL.model_copy(update={"quantize": rules}))
    )
    with pytest.raises(PassFailed, match="calibration"):
        QuantizeFp4(activations="dynamic").apply(
            model_of("y = MatMul(x, w)", w=weight(64, 48)), PassContext(target=BLACKWELL)
        )


def test_zero_weights_stay_zero() -> None:
    model = model_of("y = MatMul(x, w)", w=np.zeros((64, 48), np.float32))
    QuantizeFp4().apply(model, CONTEXT)
    Simulate().apply(model, CONTEXT)
    assert (runner.run(model, {"x": np.ones((2, 64), np.float32)})["y"] == 0).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_gptq_halves_the_output_error_on_inputs_it_has_not_seen(name: str, transposed: bool) -> None:
    w = weight(48, 64) if transposed else weight(64, 48)
    body = "y = Gemm <transB = 1> (x, w)" if transposed else "y = MatMul(x, w)"
    mixing = np.random.default_rng(5).standard_normal((8, 64))
    draws = [np.random.default_rng(seed) for seed in range(3)]
    inputs = [
        (rng.standard_normal((150, 8)) @ mixing + 0.1 * rng.standard_normal((150, 64))).astype(np.float32)
        for rng in draws
    ]
    original = runner.run(model_of(body, w=w), {"x": inputs[0]})["y"]
    calibration = Batches(tuple({"x": batch} for batch in inputs[1:]))

    def error(algorithm: str) -> float:
        model = model_of(body, w=w)
        quantize = QuantizeFp4(format=name, algorithm=algorithm)
        assert quantize.apply(model, PassContext(target=BLACKWELL, calibration=calibration)).rewrites == 1
        Simulate().apply(model, CONTEXT)
        return float(np.linalg.norm(runner.run(model, {"x": inputs[0]})["y"] - original))

    assert error("gptq") < 0.5 * error("mse")
    assert QuantizeFp4(algorithm="gptq").requires_calibration()
