"""Weights in 8-bit blocks, against NumPy and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from passes.base import PassContext, PassFailed
from passes.quantize.int4 import QuantizeInt4
from passes.quantize.int8_blocks import QuantizeInt8Blocks
from passes.target import Target
from tests.support import runner

TARGET = Target(name="t", title="T", device="cpu", dialect="onnxruntime")
CONTEXT = PassContext(target=TARGET)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 64)).astype(np.float32)
W = RNG.standard_normal((64, 32)).astype(np.float32)

MATMUL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n,64] x) => (float[n,32] y) { [product] y = MatMul(x, w) }
"""
SHARED = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n,64] x) => (float[n,32] y, float[n,32] z, float[n,64] h)
{ h = Relu(x)
  [first] y = MatMul(h, w)
  [second] z = Gemm<transB = 1>(h, v, b) }
"""
BRANCHES = """
<ir_version: 10, opset_import: ["" : 20]>
g (bool c, float[n,64] x) => (float[n,32] y) {
  y = If(c) <then_branch = t () => (float[n,32] p) { [product] p = MatMul(x, w) },
             else_branch = e () => (float[n,32] q) { h = Relu(x)
               q = Slice(h, zero, width, one) }>
}
"""
TRANSPOSED = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[64,n] x) => (float[n,32] y) { [product] y = Gemm<transA = 1>(x, w) }
"""


def model(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(proto)


def restored(changed: ir.Model, name: str, columns: int) -> np.ndarray:
    """What codes and scales stand for, by MatMulNBits' definition: `(K, N)` float32."""
    codes, scales = (changed.graph.initializers[f"{name}.{part}"].const_value for part in ("codes", "scales"))
    assert codes is not None
    assert scales is not None
    values = (codes.numpy().astype(np.float32) - 128) * scales.numpy().astype(np.float32)[:, :, None]
    return values.reshape(len(values), -1)[:, :columns].T


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_codes_stay_within_half_a_step_and_the_kernel_computes_what_they_stand_for(block: int) -> None:
    changed = model(MATMUL, w=W)
    result = QuantizeInt8Blocks(block_size=block, accuracy_level=0).apply(changed, CONTEXT)
    assert result.rewrites == 1
    assert [node.op_type for node in changed.graph] == ["MatMulNBits"]
    stored = restored(changed, "w", 64)
    for first in range(0, 64, block):
        step = np.abs(W[first : first + block]).max(axis=0) / 127
        assert (np.abs(stored - W)[first : first + block] <= 0.5001 * step).all()
    np.testing.assert_allclose(runner.run(changed, {"x": X})["y"], X @ stored, rtol=1e-4, atol=1e-4)


def test_eight_bits_are_ten_times_as_accurate_as_four() -> None:
    four, eight = model(MATMUL, w=W), model(MATMUL, w=W)
    QuantizeInt4(algorithm="rtn", form="matmulnbits", accuracy_level=0).apply(four, CONTEXT)
    QuantizeInt8Blocks(block_size=32, accuracy_level=0).apply(eight, CONTEXT)
    coarse, fine = (relative(runner.run(one, {"x": X})["y"], X @ W) for one in (four, eight))
    assert fine < coarse / 10
    assert fine < 0.01


def test_integer_activations_stay_close() -> None:
    changed = model(MATMUL, w=W)
    QuantizeInt8Blocks(accuracy_level=4).apply(changed, CONTEXT)
    assert relative(runner.run(changed, {"x": X})["y"], X @ W) < 0.02


def test_weights_of_zeros_give_exactly_zero() -> None:
    half = W.copy()
    half[:, :16] = 0
    changed = model(MATMUL, w=half)
    QuantizeInt8Blocks(accuracy_level=4).apply(changed, CONTEXT)
    found = runner.run(changed, {"x": X * 100})["y"]
    assert (found[:, :16] == 0).all()
    assert (found[:, 16:] != 0).all()


def test_half_precision_keeps_its_type() -> None:
    changed = model(MATMUL.replace("float[", "float16["), w=W.astype(np.float16))
    QuantizeInt8Blocks(accuracy_level=0).apply(changed, CONTEXT)
    found = runner.run(changed, {"x": X.astype(np.float16)})["y"]
    assert found.dtype == np.float16
    assert relative(found.astype(np.float32), X @ W) < 0.02


def test_products_that_share_an_input_a_bias_and_other_outputs_survive() -> None:
    bias = RNG.standard_normal(32).astype(np.float32)
    changed = model(SHARED, w=W, v=W.T.copy(), b=bias)
    result = QuantizeInt8Blocks(accuracy_level=0).apply(changed, CONTEXT)
    assert result.changed == ("first", "second")
    assert result.figures["weight bytes before"] == 2 * W.nbytes
    found = runner.run(changed, {"x": X})
    expected = np.maximum(X, 0)
    np.testing.assert_array_equal(found["h"], expected)
    assert relative(found["y"], expected @ W) < 0.01
    assert relative(found["z"], expected @ W + bias) < 0.01


def test_a_product_in_a_sub_graph_is_taken() -> None:
    integers = {"zero": [0], "width": [32], "one": [1]}
    changed = model(BRANCHES, w=W, **{name: np.array(value) for name, value in integers.items()})
    assert QuantizeInt8Blocks(accuracy_level=0).apply(changed, CONTEXT).rewrites == 1
    assert relative(runner.run(changed, {"c": np.array(True), "x": X})["y"], X @ W) < 0.01


def test_a_sum_that_does_not_fill_its_last_block_is_padded() -> None:
    changed = model(MATMUL.replace("64", "48"), w=W[:48])
    QuantizeInt8Blocks(block_size=32, accuracy_level=0).apply(changed, CONTEXT)
    assert relative(runner.run(changed, {"x": X[:, :48]})["y"], X[:, :48] @ W[:48]) < 0.01


def test_a_second_run_changes_nothing() -> None:
    changed = model(MATMUL, w=W)
    QuantizeInt8Blocks().apply(changed, CONTEXT)
    before = ir.to_proto(changed).SerializeToString()
    assert QuantizeInt8Blocks().apply(changed, CONTEXT).rewrites == 0
    assert ir.to_proto(changed).SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        (TRANSPOSED, W, "Gemm has transA = 1"),
        (MATMUL.replace("float[n,", "float[2,n,"), np.stack([W, W]), "this one has 3"),
    ],
)
def test_a_look_alike_is_left_alone_with_its_reason(text: str, weight: np.ndarray, reason: str) -> None:
    kept = model(text, w=weight)
    result = QuantizeInt8Blocks().apply(kept, CONTEXT)
    assert result.rewrites == 0
    assert reason in result.skips[0].reason
    assert "w" in kept.graph.initializers


def test_a_weight_that_holds_nan_is_named() -> None:
    broken = W.copy()
    broken[3, 4] = np.nan
    changed = model(MATMUL, w=broken)
    QuantizeInt8Blocks().apply(changed, CONTEXT)
    codes = changed.graph.initializers["w.codes"].const_value
    assert codes is not None
    with pytest.raises(PassFailed, match="weight 'w' cannot be quantized: it holds NaN or infinity"):
        codes.numpy()


def test_for_tensorrt_a_bias_is_added_apart_and_the_product_keeps_its_value() -> None:
    bias, v = RNG.standard_normal(32).astype(np.float32), RNG.standard_normal((32, 64)).astype(np.float32)
    changed = model(SHARED, w=W, v=v, b=bias)
    tensorrt = TARGET.model_copy(update={"dialect": "tensorrt"})
    assert QuantizeInt8Blocks().check(tensorrt) is None
    QuantizeInt8Blocks(accuracy_level=4).apply(changed, PassContext(target=tensorrt))
    assert [node.op_type for node in changed.graph] == ["Relu", "MatMulNBits", "MatMulNBits", "Add"]
    assert all(len(node.inputs) == 3 for node in changed.graph if node.op_type == "MatMulNBits")
    together = model(SHARED, w=W, v=v, b=bias)
    QuantizeInt8Blocks(accuracy_level=1).apply(together, CONTEXT)
    fused = runner.run(together, {"x": X})
    for name, apart in runner.run(changed, {"x": X}).items():
        np.testing.assert_allclose(
            apart, fused[name], rtol=2**-20, atol=2**-20
        )  # The order of one float32 addition.


@pytest.mark.parametrize("quantizer", [QuantizeInt8Blocks(block_size=32), QuantizeInt4(block_size=32)])
def test_every_token_has_activation_scales_of_its_own(quantizer: QuantizeInt8Blocks | QuantizeInt4) -> None:
    """Rows a million times apart lose alike: accuracy level 4 takes ranges by token, not by tensor."""
    rows = RNG.standard_normal((5, 64)).astype(np.float32) * np.float32([[1e-3], [1e3], [1], [1e-2], [1e2]])
    changed = model(MATMUL, w=W)
    quantizer.apply(changed, CONTEXT)
    (product,) = [node for node in changed.graph if node.op_type == "MatMulNBits"]
    assert product.attributes["accuracy_level"].as_int() == 4
    exact = model(MATMUL, w=W)
    quantizer.model_copy(update={"accuracy_level": 1}).apply(exact, CONTEXT)
    got, expected = (runner.run(each, {"x": rows})["y"] for each in (changed, exact))
    lost = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert (lost < 0.02).all()  # int8: half a step of the row's largest is 0.4 %
