"""Dynamic INT8 in ONNX Runtime's integer operators: what it rewrites, what it refuses, and the numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pydantic
import pytest

from passes.quantize.int8 import QuantizeInt8
from tests.support.runner import CPU, context, run, session

RNG = np.random.default_rng(7)

TWO_LAYERS = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[n, 32] x) => (float[n, 8] y, float[n, 16] z) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    y = Gemm <transB=1> (b, w2, b2)
    c = MatMul(x, w3)
    z = Relu(c)
}
"""


def two_layers() -> ir.Model:
    return with_weights(TWO_LAYERS, w1=(32, 16), b1=(16,), w2=(8, 16), b2=(8,), w3=(32, 16))


def with_weights(text: str, **shapes: tuple[int, ...] | np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(text)
    arrays = {
        name: shape if isinstance(shape, np.ndarray) else RNG.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    known = {value.name: value for node in model.graph.all_nodes() for value in node.inputs if value is not None}
    for name, array in arrays.items():
        value = known[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


def feeds(*shape: int) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(0, 1, shape).astype(np.float32)}


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def relative_error(expected: np.ndarray, got: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# Eight bits over about ±3 standard deviations: a step is 6/255 σ, its error 0.29 steps, 0.7 % of σ, for the
# activation; for weights the same; a factor of 3 for chained layers and unlucky draws.
INT8_ERROR = 0.03


def test_layers_become_integer_matmuls_that_share_one_quantized_activation() -> None:
    model, data = two_layers(), feeds(64, 32)
    expected = run(model, data)
    result = QuantizeInt8().apply(model, context())
    assert operators(model) == {"DynamicQuantizeLinear": 2, "MatMulIntegerToFloat": 3, "Relu": 1}
    assert result.rewrites == 3
    got = run(model, data)
    for name, value in expected.items():
        assert 0 < relative_error(value, got[name]) < INT8_ERROR
        assert relative_error(value, got[name] * 1.1) > INT8_ERROR


def test_onnx_runtime_gives_the_same_with_its_optimisation_on() -> None:
    model, data = two_layers(), feeds(64, 32)
    QuantizeInt8().apply(model, context())
    plain = run(model, data)
    everything = session(model, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL).run(None, data)
    for expected, got in zip(plain.values(), everything, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2**-18, atol=2**-18)  # float32 sums in another order


def test_a_second_run_changes_nothing() -> None:
    model = two_layers()
    QuantizeInt8().apply(model, context())
    before = ir.to_onnx_text(model)
    assert QuantizeInt8().apply(model, context()).rewrites == 0
    assert ir.to_onnx_text(model) == before


def test_weights_leave_the_model_and_outputs_keep_their_names_and_types() -> None:
    model = two_layers()
    ends = [(value.name, value.dtype, value.shape) for value in model.graph.outputs]
    result = QuantizeInt8().apply(model, context())
    assert [(value.name, value.dtype, value.shape) for value in model.graph.outputs] == ends
    assert not {"w1", "w2", "w3"} & set(model.graph.initializers)
    assert result.figures["weight bytes before"] == 4 * (32 * 16 * 2 + 16 * 8)


def test_a_listed_layer_stays_in_floating_point_and_is_named() -> None:
    model = two_layers()
    result = QuantizeInt8(skip=("Gemm",)).apply(model, context())
    assert [item.reason for item in result.skips] == ["listed under skip"]
    assert operators(model)["Gemm"] == 1


def test_two_layers_that_share_a_weight_share_its_quantized_form() -> None:
    model = with_weights(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 16] x) => (float[n, 16] y) {
            a = MatMul(x, w)
            b = Relu(a)
            y = MatMul(b, w)
        }
        """,
        w=(16, 16),
    )
    QuantizeInt8().apply(model, context())
    assert operators(model)["MatMulIntegerToFloat"] == 2
    assert [value.dtype for value in model.graph.initializers.values()].count(ir.DataType.INT8) == 1


def test_a_weight_behind_transpose_and_reshape_is_read_through_them() -> None:
    model = with_weights(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 12] x) => (float[n, 8] y) {
            flat = Reshape(w, shape)
            t = Transpose <perm=[1, 0]> (flat)
            y = MatMul(x, t)
        }
        """,
        w=(2, 4, 12),
        shape=np.array([8, 12], np.int64),
    )
    data = feeds(64, 12)
    expected = run(model, data)["y"]
    QuantizeInt8().apply(model, context())
    assert operators(model) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    assert relative_error(expected, run(model, data)["y"]) < INT8_ERROR


def test_a_layer_inside_a_subgraph_is_quantized_there() -> None:
    model = with_weights(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 16] x, bool c) => (float[n, 16] y) {
            y = If (c) <
                then_branch = yes () => (float[n, 16] p) { p = MatMul(x, w) },
                else_branch = no () => (float[n, 16] q) { q = Identity(x) }
            >
        }
        """,
        w=(16, 16),
    )
    data = {**feeds(64, 16), "c": np.array(True)}
    expected = run(model, data)["y"]
    assert QuantizeInt8().apply(model, context()).rewrites == 1
    assert 0 < relative_error(expected, run(model, data)["y"]) < INT8_ERROR


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = MatMul(x, v)", {}, "weight 'v' is a graph input, not a constant"),
        ("y = MatMul(x, w)", {"w": (16,)}, "weight 'w' has rank 1 (shape [16]), needs 2"),
        ("y = MatMul(x, w)", {"w": (1, 16, 4)}, "weight 'w' has rank 3 (shape [1, 16, 4]), needs 2"),
        ("t = Exp(w) y = MatMul(x, t)", {"w": (16, 4)}, "weight 't' is computed by Exp"),
        ("y = MatMul(w, x)", {"w": (4, 4)}, "the constant 'w' is the left operand"),
        ("y = MatMul(x, w)", {"w": np.zeros((16, 4), np.float32)}, "weight 'w' is all zeros"),
        ("y = MatMul(x, w)", {"w": np.full((16, 4), np.nan, np.float32)}, "weight 'w' holds NaN or infinity"),
        ("y = Gemm <alpha=2.0> (x, w)", {"w": (16, 4)}, "Gemm with alpha or beta other than 1"),
        ("y = Gemm <transA=1> (x, w)", {"w": (4, 4)}, "Gemm with a transposed data operand"),
    ],
)
def test_a_layer_that_cannot_be_quantized_is_named_with_its_reason(
    body: str, weights: dict[str, tuple[int, ...] | np.ndarray], reason: str
) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[4, 16] x, float[16, 4] v) => (y) {{ {body} }}'
    model = with_weights(text, **weights)
    before = ir.to_onnx_text(model)
    result = QuantizeInt8().apply(model, context())
    assert result.rewrites == 0
    assert [reason in item.reason for item in result.skips] == [True], result.skips
    assert ir.to_onnx_text(model) == before


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = RNG.normal(0, 1, (16, 4)).astype(np.float32)
    weight[:, 2] = 0
    model = with_weights(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 16] x) => (float[n, 4] y) { y = MatMul(x, w) }',
        w=weight,
    )
    QuantizeInt8().apply(model, context())
    assert not run(model, feeds(8, 16))["y"][:, 2].any()


def test_a_processor_whose_kernels_saturate_gets_seven_bit_weights() -> None:
    old = CPU.model_copy(update={"instructions": ("avx2", "fma")})
    new = CPU.model_copy(update={"instructions": ("avx2", "avx512_vnni")})
    largest = {}
    for target in (old, new):
        model = two_layers()
        QuantizeInt8().apply(model, context(target))
        stored = [
            value.const_value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8
        ]
        largest[target.instructions] = max(
            int(np.abs(tensor.numpy().astype(int)).max()) for tensor in stored if tensor
        )
    # Two products of uint8 and int8 are added in int16.
    assert 2 * 255 * largest[old.instructions] < 2**15
    assert largest[new.instructions] == 127


@pytest.mark.parametrize(("bias", "found"), [((1, 16), "float[n, 16]"), ((1, 1, 16), "float[1, n, 16]")])
def test_a_bias_that_gives_the_result_its_rank_stays_an_addition(bias: tuple[int, ...], found: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[n, 32] x) => ({found} y) {{ a = MatMul(x, w)  y = Add(a, b) }}"""
    model = with_weights(text, w=(32, 16), b=bias)
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    product.outputs[0].shape = ir.Shape(["n", 16])
    before = run(model.clone(), given := feeds(6, 32))["y"]
    assert QuantizeInt8().apply(model, context()).rewrites == 1
    after = run(model, given)["y"]
    assert after.shape == before.shape
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()


def test_operators_that_carry_no_weights_cannot_be_asked_for() -> None:
    for wrong in ("Add", "Matmul", "Relu"):
        with pytest.raises(pydantic.ValidationError, match="'MatMul', 'Gemm', 'Conv' or 'ConvTranspose'"):
            QuantizeInt8(ops=(wrong,))  # type: ignore[arg-type]
