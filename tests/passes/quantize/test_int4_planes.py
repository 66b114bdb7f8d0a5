"""Two 4-bit planes for one weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from passes.base import PassContext, PassFailed
from passes.quantize.int4 import QuantizeInt4
from passes.quantize.int4_planes import QuantizeInt4Planes
from passes.target import Target
from tests.support import runner

TARGET = Target(name="t", title="T", device="cpu", dialect="onnxruntime")
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
  [second] z = Gemm<transB = 1>(h, v) }
"""
LATE = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n,64] x) => (float[n,32] a, float[n,32] b, float[n,32] c)
{ a = MatMul(x, w)
  u = Neg(x)
  b = MatMul(u, v)
  c = MatMul(u, w) }
"""
TRANSPOSED = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[64,n] x) => (float[n,32] y) { [product] y = Gemm<transA = 1>(x, w) }
"""


def model(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(proto)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("form", ["standard", "matmulnbits"])
def test_two_planes_are_ten_times_as_accurate_as_one(form: str) -> None:
    one, two = model(MATMUL, w=W), model(MATMUL, w=W)
    QuantizeInt4(algorithm="rtn", form=form, accuracy_level=0).apply(one, PassContext(target=TARGET))
    result = QuantizeInt4Planes(form=form).apply(two, PassContext(target=TARGET))
    assert result.rewrites == 1
    expected = X @ W
    single = relative(runner.run(one, {"x": X})["y"], expected)
    double = relative(runner.run(two, {"x": X})["y"], expected)
    assert double < single / 10  # The second plane's scales are 14 times finer.
    assert double < 0.01
    assert relative(runner.run(two, {"x": X})["y"] * 1.1, expected) > 0.05


@pytest.mark.parametrize("form", ["standard", "matmulnbits"])
def test_an_input_is_copied_ahead_of_every_product_that_reads_it(form: str) -> None:
    changed = model(LATE, w=W, v=W[::-1].copy())
    assert QuantizeInt4Planes(form=form).apply(changed, PassContext(target=TARGET)).rewrites == 3
    onnx.checker.check_model(ir.to_proto(changed))
    found = runner.run(changed, {"x": X})
    for name, expected in {"a": X @ W, "b": -X @ W[::-1], "c": -X @ W}.items():
        assert relative(found[name], expected) < 0.01


def test_products_that_share_an_input_share_its_copy_and_outputs_survive() -> None:
    changed = model(SHARED, w=W, v=W.T.copy())
    result = QuantizeInt4Planes().apply(changed, PassContext(target=TARGET))
    assert result.changed == ("first", "second")
    assert [node.op_type for node in changed.graph].count("Concat") == 1
    found = runner.run(changed, {"x": X})
    expected = np.maximum(X, 0)
    np.testing.assert_array_equal(found["h"], expected)
    for name in ("y", "z"):
        assert relative(found[name], expected @ W) < 0.01


def test_a_second_run_changes_nothing() -> None:
    changed = model(MATMUL, w=W)
    QuantizeInt4Planes().apply(changed, PassContext(target=TARGET))
    before = ir.to_proto(changed).SerializeToString()
    again = QuantizeInt4Planes().apply(changed, PassContext(target=TARGET))
    assert again.rewrites == 0
    assert ir.to_proto(changed).SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        (TRANSPOSED, W, "Gemm has transA = 1"),
        (MATMUL.replace("64", "48"), W[:48], "K = 48, not a multiple of block_size 32"),
        (MATMUL.replace("float[n,64]", "float[2,n,64]"), np.stack([W, W]), "3 dimensions, two planes need 2"),
    ],
)
def test_a_look_alike_is_left_alone_with_its_reason(text: str, weight: np.ndarray, reason: str) -> None:
    kept = model(text, w=weight)
    result = QuantizeInt4Planes().apply(kept, PassContext(target=TARGET))
    assert result.rewrites == 0
    assert reason in result.skips[0].reason
    assert "w" in kept.graph.initializers


def test_a_weight_that_holds_nan_is_named() -> None:
    broken = W.copy()
    broken[3, 4] = np.nan
    changed = model(MATMUL, w=broken)
    QuantizeInt4Planes().apply(changed, PassContext(target=TARGET))
    codes = changed.graph.initializers["w.codes"].const_value
    assert codes is not None
    with pytest.raises(PassFailed, match="weight 'w' cannot be quantized: it holds NaN or infinity"):
        codes.numpy()


@pytest.mark.tensorrt
def test_the_standard_form_builds_with_tensorrt_and_stays_in_four_bits(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    half = model(MATMUL.replace("float[", "float16["), w=W.astype(np.float16))
    QuantizeInt4Planes().apply(half, PassContext(target=TARGET.model_copy(update={"dialect": "tensorrt"})))
    assert build(half, tmp_path).details["counts"] == {"matmuls": {"int4 weights, fp16": 1}}
