"""ONNX files of old opsets are raised to what a format needs, and are really quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from passes import registry
from passes.base import PassFailed
from passes.opset import lift
from passes.target import Target
from tests.support.calibration import Batches
from tests.support.runner import CPU, TENSORRT, context, run

RNG = np.random.default_rng(3)
X = RNG.normal(size=(4, 2, 8, 8)).astype(np.float32)
SCOPES = "pkg.torch.onnx.name_scopes"
ROWS = RNG.normal(size=(16, 64)).astype(np.float32)


def _held(body: str, inputs: str, outputs: str, opset: int, kind: str, **weights: np.ndarray) -> ir.Model:
    """A model of one type with one input and one output, its nodes in modules net.0, net.1, …."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"g ({kind}[{inputs}] x) => ({kind}[{outputs}] y) {{ {body} }}"
    )
    model = ir.from_onnx_text(text)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, numbers in weights.items():
        value = known[name]
        typed = numbers.astype(np.float16 if kind == "float16" else np.float32)
        value.const_value = ir.tensor(typed, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(numbers.shape)
        model.graph.register_initializer(value)
    for place, node in enumerate(model.graph):
        node.metadata_props[SCOPES] = f"['', 'net.{place}', 'node']"
    return model


def convolutions(opset: int, kind: str = "float") -> ir.Model:
    """Convolution, ReLU and a Gemm behind it."""
    body = "a = Conv <pads=[1, 1, 1, 1]> (x, w, b) r = Relu(a) f = Flatten(r) y = Gemm(f, v, c)"
    weights = {"w": RNG.normal(0, 0.2, (8, 2, 3, 3)), "b": RNG.normal(size=8), "c": RNG.normal(size=8)}
    return _held(body, "4, 2, 8, 8", "4, 8", opset, kind, v=RNG.normal(0, 0.05, (512, 8)), **weights)


def products(opset: int) -> ir.Model:
    """Two products with a ReLU between."""
    weights = {"w": RNG.normal(0, 0.1, (64, 64)), "v": RNG.normal(0, 0.1, (64, 64))}
    return _held("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", "16, 64", "16, 64", opset, "float", **weights)


def quantized(model: ir.Model, name: str, target: Target, x: np.ndarray, **options: Any) -> tuple[ir.Model, int]:
    """The model after the pass, and how many layers the pass says it changed."""
    made = registry.find(name)(**options)
    result = made.apply(model, context(target, calibration=Batches(({"x": x},))))
    return model, len(result.changed)


def error(model: ir.Model, expected: np.ndarray, x: np.ndarray) -> float:
    """Relative L2 error of what ONNX Runtime computes."""
    got = run(model, {"x": x})["y"].astype(np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("target", [CPU, TENSORRT], ids=["ONNX Runtime", "TensorRT"])
@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17, 18])
def test_static_int8_of_an_old_file_runs(opset: int, target: Target) -> None:
    model = convolutions(opset)
    expected = run(model, {"x": X})["y"]
    model, changed = quantized(model, "quantize.int8", target, X, activations="static")
    assert changed == 2
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) >= 2
    assert model.opset_imports[""] == max(opset, 13)
    assert 1e-4 < error(model, expected, X) < 0.03  # 7 or 8 bits


@pytest.mark.parametrize("opset", [13, 17])
def test_scales_in_16_bits_need_a_newer_opset(opset: int) -> None:
    model = convolutions(opset, "float16")
    expected = run(model, {"x": X.astype(np.float16)})["y"].astype(np.float64)
    model, changed = quantized(model, "quantize.int8", TENSORRT, X.astype(np.float16), activations="static")
    assert (changed, model.opset_imports[""]) == (2, 19)
    assert 1e-4 < error(model, expected, X.astype(np.float16)) < 0.03


@pytest.mark.parametrize(("opset", "after"), [(9, 11), (11, 11), (17, 17), (20, 20)])
def test_dynamic_int8_raises_no_further_than_it_needs(opset: int, after: int) -> None:
    model = products(opset)
    expected = run(model, {"x": ROWS})["y"]
    model, changed = quantized(model, "quantize.int8", CPU, ROWS)
    assert (changed, model.opset_imports[""]) == (2, after)
    assert [node.op_type for node in model.graph].count("MatMulIntegerToFloat") == 2
    assert 1e-4 < error(model, expected, ROWS) < 0.03


@pytest.mark.parametrize(
    ("name", "options", "least", "most"),
    [
        ("quantize.fp8", {"activations": "none"}, 19, 0.05),
        ("quantize.fp8", {}, 19, 0.08),
        ("quantize.fp8", {"rounding": "output", "smooth": 0.5}, 19, 0.08),
        ("quantize.fp8", {"activations": "none", "block_size": 32}, 21, 0.05),
        ("quantize.int4", {"algorithm": "rtn", "form": "standard"}, 21, 0.2),
        ("quantize.int4", {"algorithm": "gptq", "form": "standard"}, 21, 0.2),
        ("quantize.int4", {"algorithm": "awq", "form": "standard"}, 21, 0.2),
        ("quantize.int4", {}, 11, 0.2),
        ("quantize.int4_planes", {}, 21, 0.05),
        ("quantize.int8_blocks", {"block_size": 32}, 11, 0.02),
    ],
)  # the most: twice the relative step of the format's mantissa or codes
@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_weights_of_an_old_file_are_really_stored_in_the_format(
    name: str, options: dict[str, Any], least: int, most: float, opset: int
) -> None:
    model = products(opset)
    expected = run(model, {"x": ROWS})["y"]
    before = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    model, changed = quantized(model, name, CPU, ROWS, **options)
    assert (changed, model.opset_imports[""]) == (2, max(opset, least))
    after = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert after < before / 3
    assert 1e-4 < error(model, expected, ROWS) < most


@pytest.mark.parametrize("opset", [13, 17])
def test_fp4_of_an_old_file_is_really_quantized(opset: int) -> None:
    target = TENSORRT.model_copy(update={"precisions": (*TENSORRT.precisions, "fp4")})
    model = products(opset)
    expected = run(model, {"x": ROWS})["y"]
    model, changed = quantized(model, "quantize.fp4", target, ROWS)
    assert (changed, model.opset_imports[""]) == (2, 23)
    registry.find("quantize.simulate")().apply(model, context())
    assert 1e-3 < error(model, expected, ROWS) < 0.25


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_lifting_keeps_modules_names_and_weights(opset: int) -> None:
    model = products(opset)
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    results = [(node.outputs[0].name, node.metadata_props[SCOPES]) for node in model.graph]
    assert lift(model, 21)
    assert [(node.outputs[0].name, node.metadata_props.get(SCOPES)) for node in model.graph] == results
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == weights
    assert not lift(model, 21)


def test_a_module_of_an_old_file_can_be_skipped() -> None:
    model = convolutions(12)
    made = registry.find("quantize.int8")(activations="static", skip=("net.3",))
    result = made.apply(model, context(calibration=Batches(({"x": X},))))
    assert model.opset_imports[""] == 13
    assert result.changed == ("net.0",)
    assert [skip.reason for skip in result.skips] == ["listed under skip"]


def test_nothing_to_quantize_leaves_the_opset(tmp_path: Any) -> None:
    model = _held("y = Relu(x)", "4", "4", 11, "float")
    for name in ("quantize.int8", "quantize.fp8", "quantize.int4", "quantize.int4_planes"):
        registry.find(name)().apply(model, context(calibration=Batches(({"x": np.ones(4, np.float32)},))))
    assert model.opset_imports[""] == 11


def test_a_file_that_cannot_be_converted_is_refused_by_a_sentence() -> None:
    body = 'a = MatMul(x, w) y = Upsample <mode = "linear"> (a, s)'  # below opset 10, not convertible
    model = _held(body, "64, 64", "64, 64", 8, "float", w=np.ones((64, 64)), s=np.ones(2))
    with pytest.raises(PassFailed, match=r"FP8 needs opset 19, this model has 8.*Export it with opset 19"):
        registry.find("quantize.fp8")(activations="none").apply(model, context())
