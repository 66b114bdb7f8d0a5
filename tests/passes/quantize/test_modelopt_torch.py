"""Placing what ModelOpt's torch side learned: the learned numbers and no others, at the modules they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes import lessons, names
from passes.base import PassFailed
from passes.lessons import LayerLesson, Lessons
from passes.quantize.modelopt_torch import QuantizeModelOptTorch
from passes.quantize.simulate import Simulate
from tests.support.runner import CPU, TENSORRT, context, run

RULES = {"onnxruntime": CPU.quantize, "tensorrt": TENSORRT.quantize}
ANY = CPU.model_copy(update={"precisions": ("fp32", "int8", "fp8", "int4", "fp4")})

MLP = """<ir_version: 10, opset_import: ["" : 20]>
mlp (float[batch, 64] x) => (float[batch, 32] y, float[batch, 48] h) {
    [first] h = MatMul(x, a)
    [act] r = Relu(h)
    [second] y = Gemm <transB = 1> (r, b, c)
}"""
IMAGE = """<ir_version: 10, opset_import: ["" : 20]>
image (float[batch, 4, 8, 8] x) => (float[batch, 8, 6, 6] y) { [folded] y = Conv(x, w, c) }"""


def build(text: str, **shapes: tuple[int, ...]) -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        array = rng.normal(0, 0.1, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    for node in model.graph:
        node.metadata_props[names.MODULE] = f"net.{node.name}"
    return model


def mlp() -> ir.Model:
    return build(MLP, a=(64, 48), b=(32, 48), c=(32,))


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    """(out, in) per module, as PyTorch has them."""
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    return {"net.first": arrays["a"].T, "net.second": arrays["b"]}


def lesson(module: str, held: np.ndarray, **fields: object) -> LayerLesson:
    rows = held.reshape(len(held), -1)
    amax, norm = np.abs(rows).max(axis=1), np.linalg.norm(rows, axis=1)
    return LayerLesson(
        **{  # type: ignore[arg-type]
            "module": module, "weight": "int8", "weight_amax": amax, "block": 0, "input": "int8",
            "input_amax": np.float32(3.3), "input_factors": None, "plain_amax": amax, "plain_norm": norm, **fields,
        }
    )  # fmt: skip


def taught(tmp_path: Path, *layers: LayerLesson, config: str = "INT8_DEFAULT_CFG") -> dict[str, object]:
    lessons.write(Lessons(layers, (), "a tool"), tmp_path / "lessons.npz")
    return {"lessons": {lessons.key({"config": config}): str(tmp_path / "lessons.npz")}}


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).normal(0, 1, (7, 64)).astype(np.float32)}


def grid(values: np.ndarray, amax: np.ndarray | float, kind: str) -> np.ndarray:
    """`values` on a symmetric grid whose largest number is `amax`: what ModelOpt's fake quantizers give."""
    if kind == "int8 in seven bits":
        steps = np.asarray(amax, np.float32) / 64
        return np.clip(np.rint(values / steps), -64, 64) * steps
    if kind == "fp8":
        steps = np.asarray(amax, np.float32) / 448
        return np.clip(values / steps, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * steps
    highest = {"int8": 127, "int4": 7}[kind]
    steps = np.asarray(amax, np.float32) / highest
    return np.clip(np.rint(values / steps), -highest - 1, highest) * steps


def expected(
    model: ir.Model, layers: tuple[LayerLesson, ...], data: np.ndarray, *, narrow: bool = False
) -> np.ndarray:
    """The network in NumPy with every learned quantizer applied; `narrow`: INT8 weights in seven bits."""
    at = data
    for layer in layers:
        weight = weights(model)[layer.module]
        factors = np.ones(weight.shape[1], np.float32) if layer.input_factors is None else layer.input_factors
        weight, at = weight / factors, at * factors
        assert layer.weight_amax is not None
        amax = layer.weight_amax.reshape(len(weight), -1) if layer.weight_amax.size > 1 else layer.weight_amax
        if layer.block:
            amax = np.repeat(amax, layer.block, axis=1)[:, : weight.shape[1]]
        if layer.input is not None:
            assert layer.input_amax is not None
            at = grid(at, float(layer.input_amax), layer.input)
        assert layer.weight is not None
        kind = "int8 in seven bits" if narrow and layer.weight == "int8" else layer.weight
        at = at @ grid(weight, amax, kind).T
        if layer.module == "net.first":
            at = np.maximum(at, 0)
    bias = model.graph.initializers["c"].const_value
    assert bias is not None
    return at + bias.numpy()


@pytest.mark.parametrize(
    ("dialect", "instructions"), [("onnxruntime", CPU.instructions), ("onnxruntime", ("avx2",)), ("tensorrt", ())]
)
@pytest.mark.parametrize("kind", ["int8", "int8 smoothed", "fp8", "int4"])
def test_the_graph_computes_what_the_learned_quantizers_compute(
    kind: str, dialect: str, instructions: tuple[str, ...], tmp_path: Path
) -> None:
    model, original = mlp(), mlp()
    layers = []
    for module, weight in weights(model).items():
        made = lesson(module, weight)
        if kind == "int8 smoothed":
            factors = np.linspace(0.5, 2, weight.shape[1]).astype(np.float32)
            amax = 0.9 * np.abs(weight / factors).max(axis=1)  # clipped on purpose: no range of our own does that
            made = dataclasses.replace(made, input_factors=factors, weight_amax=amax)
        elif kind == "fp8":
            tensor = np.float32(np.abs(weight).max() * 0.8)
            made = dataclasses.replace(made, weight="fp8", weight_amax=tensor, input="fp8")
        elif kind == "int4":
            blocks = 0.9 * np.abs(weight.reshape(len(weight), -1, 16)).max(axis=2)
            made = dataclasses.replace(made, weight="int4", weight_amax=blocks, block=16, input=None)
        layers.append(made)
    target = ANY.model_copy(update={"dialect": dialect, "instructions": instructions, "quantize": RULES[dialect]})
    result = QuantizeModelOptTorch().apply(model, context(target, **taught(tmp_path, *layers)))
    assert any("seven bits" in note for note in result.notes) == (target.sums_in_16_bits and "int8" in kind)
    assert result.changed == ("net.first", "net.second")
    assert result.skips == ()
    got = run(model, feeds())["y"]
    meant = expected(original, tuple(layers), feeds()["x"], narrow=target.sums_in_16_bits)
    # The same steps; sums in another order can move a number across a rounding boundary now and then.
    assert np.linalg.norm(got - meant) <= 2e-3 * np.linalg.norm(meant)
    assert np.linalg.norm(run(original, feeds())["y"] - meant) > 4e-3 * np.linalg.norm(meant)
    stored = {value.dtype for value in model.graph.initializers.values()}
    assert {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN, "int4": ir.DataType.INT4}[
        kind[:4].strip()
    ] in stored
    assert [value.name for value in model.graph.outputs] == ["y", "h"]
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    again = QuantizeModelOptTorch().apply(model, context(target, **taught(tmp_path, *layers)))
    assert again.rewrites == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_fp4_weights_have_the_learned_range_as_their_global_scale(tmp_path: Path) -> None:
    model = mlp()
    plain = weights(model)
    layers = [
        lesson(module, weight, weight="nvfp4", weight_amax=np.float32(2 * np.abs(weight).max()), block=16,
               input="nvfp4")
        for module, weight in plain.items()
    ]  # fmt: skip
    result = QuantizeModelOptTorch(config="NVFP4_DEFAULT_CFG").apply(
        model, context(ANY, **taught(tmp_path, *layers, config="NVFP4_DEFAULT_CFG"))
    )
    assert any("2 layers keep theirs in floating point" in note for note in result.notes)
    scales = [value.const_value.numpy() for name, value in model.graph.initializers.items() if "global" in name]
    wanted = [2 * np.abs(weight).max() / (6 * 448) for weight in plain.values()]
    np.testing.assert_allclose(sorted(map(float, scales)), sorted(wanted), rtol=1e-6)
    Simulate().apply(model, context())
    got, meant = run(model, feeds())["y"], run(mlp(), feeds())["y"]
    # Two layers of 4-bit weights: a step is a sixth of a block's range, and twice the range halves the digits.
    assert np.linalg.norm(got - meant) <= 0.2 * np.linalg.norm(meant)


def test_fp4_inputs_are_quantized_while_tensorrt_runs(tmp_path: Path) -> None:
    model = mlp()
    target = TENSORRT.model_copy(update={"precisions": ("fp32", "fp4")})
    layers = [
        lesson(module, weight, weight="nvfp4", weight_amax=np.abs(weight).max(), block=16, input="nvfp4")
        for module, weight in weights(model).items()
    ]
    QuantizeModelOptTorch(config="NVFP4_DEFAULT_CFG").apply(
        model, context(target, **taught(tmp_path, *layers, config="NVFP4_DEFAULT_CFG"))
    )
    dynamic = [node for node in model.graph if node.op_type == "TRT_FP4DynamicQuantize"]
    assert len(dynamic) == 2
    scale = dynamic[0].inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    assert float(scale.const_value.numpy()) == pytest.approx(3.3 / (6 * 448))


def test_a_folded_batch_normalisation_is_recognised_and_its_factors_go_into_the_scales(tmp_path: Path) -> None:
    model = build(IMAGE, w=(8, 4, 3, 3), c=(8,))
    folded = model.graph.initializers["w"].const_value
    assert folded is not None
    factors = np.linspace(0.25, 4, 8).astype(np.float32)
    plain = folded.numpy() / factors[:, None, None, None]
    learned = lesson("net.conv", plain, input="fp8", weight="fp8", weight_amax=np.float32(np.abs(plain).max()))
    result = QuantizeModelOptTorch(config="FP8_DEFAULT_CFG").apply(
        model, context(ANY, **taught(tmp_path, learned, config="FP8_DEFAULT_CFG"))
    )
    assert result.changed == ("net.conv",)
    scale = model.graph.initializers["w_scale"].const_value
    assert scale is not None
    np.testing.assert_allclose(scale.numpy(), factors * np.abs(plain).max() / 448, rtol=1e-5)


@pytest.mark.parametrize(("dialect", "kind"), [("onnxruntime", ir.DataType.UINT8), ("tensorrt", ir.DataType.INT8)])
def test_a_convolutions_input_has_the_type_that_the_engine_is_fast_with(
    dialect: str, kind: ir.DataType, tmp_path: Path
) -> None:
    model, original = build(IMAGE, w=(8, 4, 3, 3), c=(8,)), build(IMAGE, w=(8, 4, 3, 3), c=(8,))
    held = original.graph.initializers["w"].const_value
    assert held is not None
    learned = lesson("net.folded", held.numpy())
    target = ANY.model_copy(update={"dialect": dialect, "quantize": RULES[dialect]})
    QuantizeModelOptTorch().apply(model, context(target, **taught(tmp_path, learned)))
    (quantize,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    zero = quantize.inputs[2]
    assert zero is not None
    assert zero.dtype == kind
    data = {"x": np.random.default_rng(1).normal(0, 1, (2, 4, 8, 8)).astype(np.float32)}
    got, plain = run(model, data)["y"], run(original, data)["y"]
    # A step is 1/127 of the range on either side, about a hundredth of the outputs.
    assert np.linalg.norm(got - plain) <= 0.02 * np.linalg.norm(plain)


def test_behind_a_relu_onnx_runtime_gets_a_zero_that_lets_it_drop_the_relu(tmp_path: Path) -> None:
    model = mlp()
    made = [lesson(module, weight) for module, weight in weights(model).items()]
    QuantizeModelOptTorch().apply(model, context(ANY, **taught(tmp_path, *made)))
    zeros = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert node.inputs[0] is not None
            zero = node.inputs[2]
            assert zero is not None
            assert zero.const_value is not None
            zeros[node.inputs[0].name] = int(zero.const_value.numpy())
    assert zeros == {"x": 128, "r": 0}


def test_what_cannot_be_placed_is_named_with_its_reason(tmp_path: Path) -> None:
    model = mlp()
    plain = weights(model)
    other = np.random.default_rng(7).normal(0, 1, plain["net.first"].shape).astype(np.float32)
    layers = (
        lesson("net.first", other),
        lesson("net.second", plain["net.second"]),
        lesson("net.elsewhere", np.ones((5, 5), np.float32)),
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = QuantizeModelOptTorch(skip=("net.second",)).apply(model, context(ANY, **taught(tmp_path, *layers)))
    reasons = {item.module: item.reason for item in result.skips}
    assert "its weight is not the module's" in reasons["net.first"]
    assert reasons["net.second"] == "listed under skip"
    assert "no layer of the graph comes from it" in reasons["net.elsewhere"]
    assert result.rewrites == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("bits", "largest"), [("auto", 64), (8, 127)])
def test_eight_bits_keep_the_learned_weights_where_a_processor_saturates(
    bits: str | int, largest: int, tmp_path: Path
) -> None:
    model = mlp()
    layers = [lesson(module, weight) for module, weight in weights(model).items()]
    target = CPU.model_copy(update={"instructions": ("avx2",)})
    result = QuantizeModelOptTorch(weight_bits=bits).apply(model, context(target, **taught(tmp_path, *layers)))
    codes = [value.const_value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert {int(np.abs(tensor.numpy().astype(np.int32)).max()) for tensor in codes} == {largest}
    assert any("weight_bits: 8" in note for note in result.notes) == (bits == "auto")


def test_scales_in_fp16_raise_the_opset(tmp_path: Path) -> None:
    text = IMAGE.replace("float[", "float16[").replace('"" : 20', '"" : 18')
    model = build(text, w=(8, 4, 3, 3), c=(8,))
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    held = model.graph.initializers["w"].const_value.numpy().astype(np.float32)
    x = {"x": np.random.default_rng(5).normal(0, 1, (2, 4, 8, 8)).astype(np.float16)}
    expected = run(model, x)["y"].astype(np.float32)
    world = context(TENSORRT, **taught(tmp_path, lesson("net.folded", held)))
    assert QuantizeModelOptTorch().apply(model, world).rewrites == 1
    assert model.opset_imports[""] == 19
    got = run(model, x)["y"].astype(np.float32)
    assert 0 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.03  # 8 bits: 1 to 2 %


def test_without_lessons_it_says_what_kind_of_source_it_needs() -> None:
    with pytest.raises(PassFailed, match="source is of kind torch or huggingface"):
        QuantizeModelOptTorch().apply(mlp(), context())


def test_a_target_is_asked_about_every_format_that_may_come_out() -> None:
    both = QuantizeModelOptTorch(config="auto", formats=("INT8_DEFAULT_CFG", "W4A16_NVFP4_CFG"))
    reason = both.check(TENSORRT)
    assert reason is not None
    assert reason.startswith("W4A16_NVFP4_CFG: TensorRT does not run FP4")
    assert QuantizeModelOptTorch().check(TENSORRT) is None
