"""FP16 products with weights in few bits are right on ONNX Runtime's CPU at every level of graph optimisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes import registry
from passes.target import Target
from tests.support.calibration import Batches
from tests.support.runner import CPU, context, session

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
    g (float16[n, 64] x) => (float16[n, 64] y) {
        h = Mul(x, s)
        a = MatMul(h, w)
        r = Add(a, b)
        y = MatMul(r, v)
    }"""
LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
CUDA = Target(name="t", title="T", device="cuda", dialect="onnxruntime", precisions=("fp16", "int4"))
X = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float16)


def model(kind: str = "float16") -> ir.Model:
    """An element-wise operator, a product, a bias and a product."""
    made = ir.from_onnx_text(TEXT.replace("float16", kind))
    rng = np.random.default_rng(0)
    known = {value.name: value for node in made.graph for value in node.inputs if value is not None}
    for name, shape in {"s": (64,), "w": (64, 32), "b": (32,), "v": (32, 64)}.items():
        numbers = rng.normal(0, 0.2, shape).astype(np.float16 if kind == "float16" else np.float32)
        known[name].const_value = ir.tensor(numbers, name=name)
        known[name].type, known[name].shape = ir.TensorType(ir.DataType.from_numpy(numbers.dtype)), ir.Shape(shape)
        made.graph.register_initializer(known[name])
    return made


def levels(made: ir.Model) -> set[int]:
    """The accuracy levels of its products."""
    return {node.attributes["accuracy_level"].as_int() for node in made.graph if node.op_type == "MatMulNBits"}


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("quantize.int4", {"algorithm": "rtn"}, 0.25),
        ("quantize.int4", {}, 0.25),
        ("quantize.int4", {"symmetric": False, "accuracy_level": 0}, 0.25),
        ("quantize.int8_blocks", {"block_size": 32}, 0.02),
        ("quantize.int4_planes", {"form": "matmulnbits"}, 0.02),
    ],
)  # the most: twice what the codes alone cost
def test_products_in_fp16_are_right_at_every_level(name: str, options: dict[str, Any], most: float) -> None:
    made = model()
    expected = session(made, level=LEVELS[0]).run(None, {"x": X})[0].astype(np.float64)
    registry.find(name)(**options).apply(made, context(CPU, calibration=Batches(({"x": X},))))
    assert len(levels(made)) == 1
    for level in LEVELS:
        got = session(made, level=level).run(None, {"x": X})[0].astype(np.float64)
        assert np.linalg.norm(got - expected) < most * np.linalg.norm(expected), level


@pytest.mark.parametrize("name", ["quantize.int4", "quantize.int8_blocks"])
@pytest.mark.parametrize(
    ("kind", "target", "expected"), [("float16", CPU, True), ("float", CPU, False), ("float16", CUDA, False)]
)
def test_float32_between_casts_is_told(name: str, kind: str, target: Target, expected: bool) -> None:
    made = model(kind)
    result = registry.find(name)().apply(made, context(target))
    assert levels(made) == {4}
    products = [node for node in made.graph if node.op_type == "MatMulNBits"]
    assert all((node.inputs[2].dtype == ir.DataType.FLOAT) == (kind == "float" or expected) for node in products)
    told = [note for note in result.notes if "between casts" in note]
    assert len(told) == expected


BIAS = """<ir_version: 10, opset_import: ["" : 20]>
    g (float16[n, 64] x, bool c) => (float16[n, 32] y, float16[n, 32] z, float16[n, 32] q) {
        h = Mul(x, x)
        y = Gemm(h, w, b)
        z = MatMul(h, w)
        q = If(c) <
            then_branch = t () => (float16[n, 32] a) { a = MatMul(h, v) },
            else_branch = e () => (float16[n, 32] d) { k = Neg(h)  d = MatMul(k, w) }
        >
    }"""


@pytest.mark.parametrize("name", ["quantize.int4", "quantize.int8_blocks"])
@pytest.mark.parametrize("branch", [True, False])
def test_biases_shared_inputs_and_branches_are_right_too(name: str, branch: bool) -> None:
    made = ir.from_onnx_text(BIAS)
    rng = np.random.default_rng(0)
    for weight, shape in {"w": (64, 32), "b": (32,), "v": (64, 32)}.items():
        value = ir.Value(
            name=weight, const_value=ir.tensor(rng.normal(0, 0.2, shape).astype(np.float16), name=weight)
        )
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(shape)
        made.graph.register_initializer(value)
        for node in made.graph.all_nodes():
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == weight:
                    node.replace_input_with(index, value)
    feeds = {"x": X, "c": np.array(branch)}
    expected = session(made, level=LEVELS[0]).run(None, feeds)
    result = registry.find(name)(block_size=32).apply(made, context(CPU))
    assert len(result.changed) == 4
    reads = [node for node in made.graph if node.op_type == "Cast" and node.inputs[0].name == "h"]
    assert len(reads) == 1  # what two products read is cast once
    for level in LEVELS:
        for got, want in zip(session(made, level=level).run(None, feeds), expected, strict=True):
            assert got.dtype == np.float16
            error = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64))
            assert error < (0.25 if name == "quantize.int4" else 0.02), level
