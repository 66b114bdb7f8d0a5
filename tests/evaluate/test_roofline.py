"""Operations and bytes are counted by hand here, and the floor must agree."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optimize.evaluate import roofline
from passes.target import Target

TARGET = Target(
    name="t",
    title="t",
    device="cuda",
    dialect="tensorrt",
    bandwidth_bytes_per_s=1e9,
    peak_ops_per_s={"fp32": 1e9, "fp16": 4e9},
)


def model(dtype: str = "float") -> ir.Model:
    built = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g ({dtype}[batch, 64] x, {dtype}[64, 128] w) => ({dtype}[batch, 128] y) {{ y = MatMul(x, w) }}"""
    )
    weight = built.graph.inputs.pop()
    weight.const_value = ir.tensor(np.zeros((64, 128), np.float32 if dtype == "float" else np.float16), name="w")
    built.graph.register_initializer(weight)
    return built


def test_a_matmul_counts_two_operations_per_multiplication() -> None:
    assert roofline.count_operations(model(), {"batch": 8}) == (2.0 * 8 * 64 * 128, [])


def test_the_floor_is_the_larger_of_compute_and_memory() -> None:
    small = roofline.estimate(model(), model(), TARGET, {"batch": 1})
    large = roofline.estimate(model(), model(), TARGET, {"batch": 4096})
    assert small is not None
    assert large is not None
    moved = 64 * 128 * 4 + 64 * 4 + 128 * 4
    assert small.bound == "memory"
    assert small.floor_ms == pytest.approx(moved / 1e9 * 1e3)
    assert large.bound == "compute"
    assert large.floor_ms == pytest.approx(2.0 * 4096 * 64 * 128 / 1e9 * 1e3)


def test_weights_stored_in_half_precision_halve_the_memory_time_and_use_its_rate() -> None:
    half = roofline.estimate(model(), model("float16"), TARGET, {"batch": 1})
    assert half is not None
    assert half.precision == "fp16"
    assert half.bytes_moved == 64 * 128 * 2 + 64 * 4 + 128 * 4


def test_a_target_without_rates_has_no_roofline() -> None:
    bare = Target(name="t", title="t", device="cpu", dialect="onnxruntime")
    assert roofline.estimate(model(), model(), bare, {"batch": 1}) is None


def test_text_has_no_size_and_is_not_counted() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (string[n] x) => (string[n] y) { y = Identity(x) }"""
    found = roofline.estimate(ir.from_onnx_text(text), ir.from_onnx_text(text), TARGET, {"n": 4})
    assert found is not None
    assert (found.operations, found.bytes_moved) == (0, 0)
