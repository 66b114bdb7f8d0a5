"""`quantize.int4` on small graphs: both graph forms, every weight layout, refusals by name."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes import numerics
from passes.base import PassContext, PassFailed
from passes.quantize.int4 import QuantizeInt4
from passes.target import Target
from tests.support import runner
from tests.support.calibration import normal

STANDARD = PassContext(target=runner.TENSORRT)
ORT = PassContext(target=runner.CPU)
RNG = np.random.default_rng(0)


def model_of(body: str, opset: int = 21, inputs: str = "float[m, 64] x", **weights: np.ndarray) -> ir.Model:
    """A model `y = body`, with the given initializers."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> agraph ({inputs}) => (float[m, n] y) {{ {body} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return ir.from_proto(proto)


RESHAPED = {"w": np.ones((48, 64), np.float32), "s": np.array([64, 48])}


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(np.float32)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def output(model: ir.Model, columns: int = 64) -> np.ndarray:
    x = np.random.default_rng(9).standard_normal((5, columns)).astype(np.float32)
    onnx.checker.check_model(ir.to_proto(model))
    return runner.run(model, {"x": x})["y"]


def round_trip(w: np.ndarray, axis: int, block: int = 32) -> np.ndarray:
    """What the weight becomes, by the plain formula."""
    axis_first = np.moveaxis(w, axis, 0)
    blocks = axis_first.reshape(-1, block, axis_first.shape[1])
    scale = numerics.symmetric_scale(np.abs(blocks).max(axis=1, keepdims=True), numerics.INT4)
    back = numerics.dequantize(numerics.quantize(blocks, scale, numerics.INT4), scale)
    return np.moveaxis(back.reshape(axis_first.shape), 0, axis)


FORMS = {
    "MatMul": ("y = MatMul(x, w)", (64, 48), 0),
    "Gemm": ("y = Gemm(x, w, b)", (64, 48), 0),
    "Gemm transB": ("y = Gemm <transB = 1> (x, w, b)", (48, 64), 1),
    "behind Transpose": ("t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)", (48, 64), 1),
    "Gemm transB behind Transpose": (
        "t = Transpose <perm = [1, 0]> (w) y = Gemm <transB = 1> (x, t, b)",
        (64, 48),
        0,
    ),
}


@pytest.mark.parametrize("context", [STANDARD, ORT], ids=["standard", "onnxruntime"])
@pytest.mark.parametrize("form", FORMS)
def test_every_layout_keeps_its_blocks_along_the_summed_axis(form: str, context: PassContext) -> None:
    body, shape, axis = FORMS[form]
    extra = {"b": weight(48)} if "b)" in body else {}
    w = weight(*shape)
    model = model_of(body, w=w, **extra)
    expected = output(model_of(body, w=round_trip(w, axis), **extra))
    result = QuantizeInt4(algorithm="rtn", accuracy_level=1).apply(model, context)
    assert result.rewrites == 1
    assert "w" not in model.graph.initializers
    if context is STANDARD:
        assert "DequantizeLinear" in ops(model)
        scales = model.graph.initializers["w.scales"]
        assert list(scales.shape) == [size // 32 if i == axis else size for i, size in enumerate(shape)]
    else:
        assert ops(model) == ["MatMulNBits"]
    # Products of 64 float32 terms, summed in another order by each kernel.
    np.testing.assert_allclose(output(model), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(output(model) - output(model_of(body, w=w * 1.1, **extra))).max() > 1e-2


@pytest.mark.parametrize("context", [STANDARD, ORT], ids=["standard", "onnxruntime"])
@pytest.mark.parametrize("columns", [48, 7])
def test_zero_points_serve_lopsided_weights(context: PassContext, columns: int) -> None:
    if context is STANDARD:
        context = PassContext(target=runner.CPU)
        options = {"form": "standard"}
    else:
        options = {}
    w = weight(96, columns) + 0.3
    original = output(model_of("y = MatMul(x, w)", inputs="float[m, 96] x", w=w), 96)

    def error(symmetric: bool) -> float:
        model = model_of("y = MatMul(x, w)", inputs="float[m, 96] x", w=w)
        QuantizeInt4(symmetric=symmetric, accuracy_level=1, **options).apply(model, context)
        return float(np.linalg.norm(output(model, 96) - original) / np.linalg.norm(original))

    assert error(symmetric=False) < 0.7 * error(symmetric=True)


def test_a_second_run_changes_nothing() -> None:
    for context in (STANDARD, ORT):
        model = model_of("y = MatMul(x, w)", w=weight(64, 48))
        QuantizeInt4().apply(model, context)
        before = ir.to_proto(model).SerializeToString()
        result = QuantizeInt4().apply(model, context)
        assert result.rewrites == 0
        assert ir.to_proto(model).SerializeToString() == before


def test_a_lower_opset_is_raised_for_the_standard_form_only() -> None:
    model = model_of("y = MatMul(x, w)", opset=18, w=weight(64, 48))
    QuantizeInt4().apply(model, ORT)
    assert model.graph.opset_imports[""] == 18
    model = model_of("y = MatMul(x, w)", opset=18, w=weight(64, 48))
    QuantizeInt4().apply(model, STANDARD)
    assert model.graph.opset_imports[""] == 21
    assert output(model).shape == (5, 48)


def test_a_shared_weight_is_stored_once() -> None:
    for context in (STANDARD, ORT):
        model = model_of("a = MatMul(x, w) b = MatMul(a, w) y = Add(a, b)", w=weight(64, 64))
        result = QuantizeInt4(accuracy_level=1).apply(model, context)
        assert result.rewrites == 2
        assert [name for name in model.graph.initializers if "codes" in name] == ["w.codes"]
        assert np.isfinite(output(model)).all()


def test_a_last_block_that_is_not_full_is_kept_where_the_target_reads_it() -> None:
    w = weight(72, 10)
    original = output(model_of("y = MatMul(x, w)", inputs="float[m, 72] x", w=w), 72)
    for options in ({}, {"form": "standard"}, {"symmetric": False}, {"form": "standard", "symmetric": False}):
        model = model_of("y = MatMul(x, w)", inputs="float[m, 72] x", w=w)
        result = QuantizeInt4(accuracy_level=1, **options).apply(model, ORT)
        assert result.rewrites == 1
        close = np.linalg.norm(output(model, 72) - original) / np.linalg.norm(original)
        assert close < 0.15, options  # 4 bits: half a step of 1/7 of the range
    model = model_of("y = MatMul(x, w)", inputs="float[m, 72] x", w=w)
    result = QuantizeInt4().apply(model, STANDARD)
    assert result.rewrites == 0
    assert "K = 72, not a multiple of block_size 32" in result.skips[0].reason


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = MatMul(w, x)", {"w": weight(8, 64)}, "left input"),
        ("t = Relu(x) u = Transpose(x) y = MatMul(t, u)", {}, "graph input"),
        ("y = MatMul(x, w)", {"w": weight(64)}, "1 dimension"),
        ("a = MatMul(x, w) b = Relu(w) y = Add(a, b)", {"w": weight(64, 64)}, "also feeds Relu"),
        ("a = MatMul(x, w) y = Gemm <transB = 1> (a, w)", {"w": weight(64, 64)}, "sums over the other axis"),
        ("r = Reshape(w, s) y = MatMul(x, r)", RESHAPED, "computed by Reshape"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_named_with_its_reason(
    body: str, weights: dict[str, np.ndarray], reason: str
) -> None:
    model = model_of(body, **weights)
    before = ir.to_proto(model).SerializeToString()
    result = QuantizeInt4().apply(model, ORT)
    assert result.rewrites == 0
    assert any(reason in skip.reason for skip in result.skips), result.skips
    assert ir.to_proto(model).SerializeToString() == before


def test_a_weight_that_is_a_graph_input_or_output_stays() -> None:
    model = model_of("y = MatMul(x, w)", inputs="float[m, 64] x, float[64, 48] w")
    assert "graph input" in QuantizeInt4().apply(model, ORT).skips[0].reason
    model = model_of("y = MatMul(x, w)", w=weight(64, 48))
    model.graph.outputs.append(model.graph.initializers["w"])
    assert "graph output" in QuantizeInt4().apply(model, ORT).skips[0].reason


def test_skip_patterns_leave_their_nodes_alone_and_say_so() -> None:
    model = model_of("a = MatMul(x, v) y = MatMul(a, w)", v=weight(64, 64), w=weight(64, 48))
    nodes = list(model.graph)
    nodes[0].name, nodes[1].name = "first", "last"
    result = QuantizeInt4(skip=("fir*",)).apply(model, ORT)
    assert ops(model) == ["MatMul", "MatMulNBits"]
    assert (result.skips[0].node, result.skips[0].reason) == ("first", "named under skip")


def test_weights_used_inside_a_sub_graph_are_quantized_there() -> None:
    body = """c = ReduceSum <keepdims = 0> (x) zero = Constant <value_float = 0.0> () k = Greater(c, zero)
        y = If (k) <
            then_branch = yes () => (float[m, n] p) { p = MatMul(x, w) },
            else_branch = no () => (float[m, n] q) { h = MatMul(x, w) q = Neg(h) }>"""
    for context in (STANDARD, ORT):
        w = weight(64, 48)
        model = model_of(body, w=w)
        result = QuantizeInt4(algorithm="rtn", accuracy_level=1).apply(model, context)
        assert result.rewrites == 2
        expected = output(model_of(body, w=round_trip(w, 0)))
        np.testing.assert_allclose(output(model), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_with_nan_is_named_when_it_is_written() -> None:
    w = weight(64, 48)
    w[3, 3] = np.nan
    model = model_of("y = MatMul(x, w)", w=w)
    QuantizeInt4().apply(model, ORT)
    with pytest.raises(PassFailed, match="weight 'w' cannot be quantized"):
        model.graph.initializers["w.codes"].const_value.numpy()


def test_gemm_with_a_factor_takes_the_standard_form_on_onnxruntime() -> None:
    model = model_of("y = Gemm <alpha = 0.5> (x, w)", w=weight(64, 48))
    result = QuantizeInt4().apply(model, ORT)
    assert ops(model) == ["DequantizeLinear", "Gemm"]
    assert "alpha = 0.5" in result.notes[0]


def test_a_target_without_int4_or_with_other_blocks_is_refused_by_name() -> None:
    assert QuantizeInt4().check(runner.CPU) is None
    rules = runner.TENSORRT.quantize.model_copy(update={"block_sizes": {"int4": (64, 128)}})
    target = runner.TENSORRT.model_copy(update={"quantize": rules, "precisions": ("fp16", "int4")})
    assert "INT4 blocks of 64, 128, not 32" in str(QuantizeInt4().check(target))
    assert "symmetric" in str(QuantizeInt4(block_size=64, symmetric=False).check(target))
    assert "MatMulNBits" in str(QuantizeInt4(block_size=64, form="matmulnbits").check(target))
    without = target.model_copy(update={"precisions": ("fp16", "fp8"), "emulated": ()})
    assert "no INT4 weights; use fp8" in str(QuantizeInt4().check(without))
    with pytest.raises(ValueError, match="block_size is 48"):
        QuantizeInt4(block_size=48)


class Recorded:
    """Calibration over given batches, run for real."""

    def __init__(self, *batches: np.ndarray) -> None:
        self.batches = batches
        self.samples = sum(len(batch) for batch in batches)

    def feeds(self):
        yield from ({"x": batch} for batch in self.batches)

    def observe(self, model, values):
        for feed in self.feeds():
            yield runner.run(model, feed, values)


def correlated(seed: int, rows: int, columns: int = 64) -> np.ndarray:
    """Inputs as layers see them: few directions carry most of the energy."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(5).standard_normal((8, columns))
    values = rng.standard_normal((rows, 8)) @ mixing + 0.1 * rng.standard_normal((rows, columns))
    return values.astype(np.float32)


@pytest.mark.parametrize("form", ["y = MatMul(x, w)", "y = Gemm <transB = 1> (x, w)"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("graph_form", ["standard", "matmulnbits"])
def test_gptq_halves_the_output_error_on_inputs_it_has_not_seen(
    form: str, symmetric: bool, graph_form: str
) -> None:
    w = weight(64, 48) if "MatMul" in form else weight(48, 64)
    unseen = correlated(1, 200)
    original = runner.run(model_of(form, w=w), {"x": unseen})["y"]
    calibration = Recorded(correlated(2, 100), correlated(3, 100))
    context = PassContext(target=runner.CPU, calibration=calibration)

    def error(algorithm: str) -> float:
        model = model_of(form, w=w)
        options = {"symmetric": symmetric, "form": graph_form, "accuracy_level": 1}
        result = QuantizeInt4(algorithm=algorithm, **options).apply(model, context)
        assert result.rewrites == 1
        return float(np.linalg.norm(runner.run(model, {"x": unseen})["y"] - original))

    assert error("gptq") < 0.5 * error("mse")


def test_gptq_handles_inputs_that_calibration_never_reached() -> None:
    inputs = correlated(4, 50)
    inputs[:, 10:20] = 0
    model = model_of("y = MatMul(x, w)", w=weight(64, 48))
    QuantizeInt4(algorithm="gptq").apply(model, PassContext(target=runner.CPU, calibration=Recorded(inputs)))
    assert np.isfinite(output(model)).all()


def test_gptq_without_data_or_with_nan_in_it_says_what_to_do() -> None:
    assert QuantizeInt4(algorithm="gptq").requires_calibration()
    assert not QuantizeInt4().requires_calibration()
    with pytest.raises(PassFailed, match="needs calibration data"):
        QuantizeInt4(algorithm="gptq").apply(model_of("y = MatMul(x, w)", w=weight(64, 48)), ORT)
    bad = correlated(4, 50)
    bad[3, 3] = np.nan
    context = PassContext(target=runner.CPU, calibration=Recorded(bad))
    with pytest.raises(PassFailed, match="'x' is not finite"):
        QuantizeInt4(algorithm="gptq").apply(model_of("y = MatMul(x, w)", w=weight(64, 48)), context)


def norm_model() -> ir.Model:
    """Two channels of 64 are loud: what AWQ is for."""
    loud = np.ones(64, np.float32)
    loud[[3, 40]] = 30
    body = "h = LayerNormalization (x, g, b) y = MatMul(h, w)"
    return model_of(
        body,
        g=loud,
        b=np.zeros(64, np.float32),
        w=np.random.default_rng(3).normal(size=(64, 48)).astype(np.float32),
    )


@pytest.mark.parametrize("target", [runner.TENSORRT, runner.CPU], ids=["standard", "onnxruntime"])
def test_awq_lessens_the_error_without_a_new_node(target: Target) -> None:
    data = normal((256, 64), 2)
    expected = output(norm_model())
    errors = {}
    for algorithm in ("mse", "awq"):
        model = norm_model()
        options = {"algorithm": algorithm, "accuracy_level": 1}
        result = QuantizeInt4.model_validate(options).apply(model, runner.context(target, calibration=data))
        assert result.rewrites == 1
        assert ops(model)[0] == "LayerNormalization"
        assert "Mul" not in ops(model)
        assert result.figures.get("AWQ divisions folded", 0) == (1 if algorithm == "awq" else 0)
        errors[algorithm] = np.linalg.norm(output(model) - expected)
        before = ops(model)
        again = QuantizeInt4.model_validate(options).apply(model, runner.context(target, calibration=data))
        assert again.rewrites == 0
        assert ops(model) == before
    assert errors["awq"] < 0.8 * errors["mse"], errors


def test_awq_without_calibration_data_says_what_to_do() -> None:
    assert QuantizeInt4(algorithm="awq").requires_calibration()
    with pytest.raises(PassFailed, match="Add `calibration`"):
        QuantizeInt4(algorithm="awq").apply(norm_model(), STANDARD)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("accuracy_level", [1, 4])
def test_channels_of_zeros_give_exactly_zero(accuracy_level: int, symmetric: bool) -> None:
    w = weight(2048, 48)
    w[:, :24] = 0
    model = model_of("y = MatMul(x, w)", inputs="float[m, 2048] x", w=w)
    x = (np.random.default_rng(1).standard_normal((9, 2048)) * 30).astype(np.float32)
    QuantizeInt4(algorithm="rtn", accuracy_level=accuracy_level, symmetric=symmetric).apply(model, ORT)
    found = runner.run(model, {"x": x})["y"]
    assert (found[:, :24] == 0).all()
    assert np.abs(found[:, 24:] - x @ w[:, 24:]).max() < 0.2 * np.abs(x @ w[:, 24:]).max()
