"""Engines built from ONNX, on a machine without a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from optimize.engines import tensorrt_build, tensorrt_device, tensorrt_layers, tensorrt_library, tensorrt_plan
from optimize.engines.base import Artifact, AxisRange, BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_log import Messages
from optimize.engines.tensorrt_options import Shapes, TensorRTOptions
from optimize.errors import BackendMissing, StageFailed
from passes.names import NAME_SCOPES

pytestmark = pytest.mark.tensorrt

ATTENTION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,8,128,64] q, float16[batch,8,128,64] k, float16[batch,8,128,64] v)
  => (float16[batch,8,128,64] y) { [attend] y = Attention(q, k, v) }
"""
FP16 = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,256] x) => (float16[batch,256] y)
{ [multiply] a = MatMul(x, w)
  [clip] y = Relu(a) }
"""
W8A8 = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,256] x) => (float16[batch,256] y)
{ [quantize] xq = QuantizeLinear(x, s, z)
  [dequantize] xd = DequantizeLinear(xq, s, z)
  [weight] wd = DequantizeLinear<axis = 1>(wq, ws, wz)
  [multiply] y = MatMul(xd, wd) }
"""
INT4 = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,256] x) => (float16[batch,256] y)
{ [weight] wd = DequantizeLinear<axis = 0, block_size = 32>(wq, ws)
  [multiply] y = MatMul(x, wd) }
"""
NVFP4 = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,256] x) => (float16[batch,256] y)
{ [scale] ws = DequantizeLinear(ws8, wg)
  [weight] wd = DequantizeLinear<axis = 0, block_size = 16>(wq, ws)
  [multiply] y = MatMul(x, wd) }
"""
UNSUPPORTED = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,256] x) => (float16[batch,256] y)
{ [multiply] a = MatMul(x, w)
  [stranger] b = DeformConv(a, a, a)
  [clip] y = Relu(b) }
"""
INT8_CONVOLUTION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[4,16,8,8] x) => (float16[4,16,6,6] y)
{ [quantize] xq = QuantizeLinear(x, s, z)
  [dequantize] xd = DequantizeLinear(xq, s, z)
  [weight] wd = DequantizeLinear<axis = 0>(wq, ws, wz)
  [convolve] y = Conv(xd, wd) }
"""
BATCH = {"batch": AxisRange(1, 8, 32)}
WEIGHT = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)

Arrays = dict[str, np.ndarray]
Build = Callable[..., Artifact]


def quantized(dtype: type, scale: float) -> Arrays:
    limit = 7 if dtype is ml_dtypes.int4 else 6 if dtype is ml_dtypes.float4_e2m1fn else 127
    return {"wq": np.clip(WEIGHT / scale, -limit, limit).round().astype(dtype)}


def w8a8(dtype: type) -> Arrays:
    return {
        "s": np.array(0.05, np.float16), "z": np.zeros((), dtype),
        "ws": np.full(256, 0.03, np.float16), "wz": np.zeros(256, dtype), **quantized(dtype, 0.03),
    }  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(
        text: str,
        weights: Arrays | None = None,
        ranges: dict[str, AxisRange] = BATCH,
        modules: dict[str, str] | None = None,
        **options: object,
    ) -> Artifact:
        model = onnx.parser.parse_model(text)
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in (weights or {}).items()
        )
        for node in model.graph.node:
            scopes = str(["", (modules or {}).get(node.name, ""), node.name])
            node.metadata_props.add(key=NAME_SCOPES, value=scopes)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        folder = tmp_path / "built"
        folder.mkdir(exist_ok=True)
        engine = TensorRTEngine(TensorRTOptions(**options))
        return engine.build(BuildRequest(path, folder, ranges), lambda what, done, total: None)

    return run


def test_an_fp16_attention_becomes_one_fused_layer(build: Build) -> None:
    artifact = build(ATTENTION)
    assert artifact.kind == "tensorrt-plan"
    assert artifact.path.stat().st_size > 10_000
    assert artifact.details["counts"] == {"attentions": {"fp16": 1}}
    assert any("mha" in layer["name"] for layer in artifact.details["layers"])


@pytest.mark.parametrize(
    ("text", "weights", "precision"),
    [
        (FP16, {"w": WEIGHT.astype(np.float16)}, "fp16"),
        (W8A8, w8a8(np.int8), "int8"),
        (W8A8, w8a8(ml_dtypes.float8_e4m3fn), "fp8"),
        (
            INT4,
            {"ws": np.full((8, 256), 0.3, np.float16), **quantized(ml_dtypes.int4, 0.3)},
            "int4 weights, fp16",
        ),
    ],
    ids=["fp16", "int8", "fp8", "int4"],
)
def test_the_layers_tell_what_each_matmul_runs_in(build: Build, text: str, weights: Arrays, precision: str) -> None:
    artifact = build(text, weights)
    assert artifact.details["counts"] == {"matmuls": {precision: 1}}
    assert artifact.details["summary"] == [f"1 of 1 matmuls run in {precision}."]
    assert artifact.details["source"] in ("build log", "inspector")  # the inspector needs a GPU


def test_weights_in_nvfp4_keep_their_four_bits_in_the_plan(build: Build) -> None:
    scales = np.full((16, 256), 0.5, ml_dtypes.float8_e4m3fn)
    artifact = build(
        NVFP4, {"ws8": scales, "wg": np.array(0.5, np.float16), **quantized(ml_dtypes.float4_e2m1fn, 0.25)}
    )
    stored = [tensor for layer in artifact.details["layers"] for tensor in layer["constants"]]
    assert any(tensor["dtype"] == "fp4" for tensor in stored)


def test_two_fused_nodes_are_told_as_one_layer(build: Build) -> None:
    layers = build(FP16, {"w": WEIGHT.astype(np.float16)}).details["layers"]
    assert [set(layer["nodes"]) for layer in layers if layer["nodes"]] == [{"multiply", "clip"}]


def test_an_unsupported_operator_is_named_with_its_module_and_a_remedy(build: Build) -> None:
    with pytest.raises(StageFailed) as caught:
        build(UNSUPPORTED, {"w": WEIGHT.astype(np.float16)}, modules={"stranger": "encoder.layer.3.deform"})
    said = str(caught.value)
    assert "node 'stranger' (DeformConv) of module 'encoder.layer.3.deform'" in said
    assert "No importer registered for op: DeformConv." in said
    assert "Rewrite it" in said


def test_garbage_waits_until_the_library_no_longer_calls_back(tmp_path: Path, tensorrt: ModuleType) -> None:
    # A builder freed in a call to the log waits for the log's own lock: the process hung.
    model = onnx.parser.parse_model(FP16.replace("MatMul(x, w)", "Neg(x)"))
    onnx.save(model, tmp_path / "model.onnx")
    seen: list[bool] = []
    request = BuildRequest(tmp_path / "model.onnx", tmp_path, {"batch": AxisRange(1, 2, 4)})
    TensorRTEngine().build(request, lambda what, done, total: seen.append(gc.isenabled()))
    assert seen
    assert not any(seen)
    assert gc.isenabled()


def test_mixed_types_are_explained_without_the_librarys_internals(build: Build) -> None:
    with pytest.raises(StageFailed) as caught:
        build(FP16, {"w": WEIGHT})
    said = str(caught.value)
    assert "node 'multiply' (MatMul)" in said
    assert "strongly typed" in said
    assert "/_src/" not in said
    assert "Error Code" not in said


def test_an_int8_convolution_is_refused_where_the_flavour_has_none(build: Build, tensorrt: ModuleType) -> None:
    if tensorrt.__name__ != "tensorrt_rtx":
        pytest.skip("TensorRT has INT8 convolutions")
    weights = w8a8(np.int8) | {"wq": np.ones((16, 16, 3, 3), np.int8)}
    weights |= {"ws": np.full(16, 0.03, np.float16), "wz": np.zeros(16, np.int8)}
    with pytest.raises(StageFailed, match=r"no INT8 convolutions, and node 'convolve' of module 'stem' is one"):
        build(INT8_CONVOLUTION, weights, {}, modules={"convolve": "stem"})


def test_nothing_is_left_behind_when_building_fails(build: Build, tmp_path: Path) -> None:
    with pytest.raises(StageFailed):
        build(UNSUPPORTED, {"w": WEIGHT.astype(np.float16)})
    assert list((tmp_path / "built").iterdir()) == []


def test_a_dynamic_axis_without_a_range_is_named(build: Build) -> None:
    with pytest.raises(StageFailed, match=r"axis 0 \('batch'\) of input 'q' is dynamic and has no range"):
        build(ATTENTION, ranges={})


def test_a_range_that_excludes_its_typical_size_is_refused(build: Build) -> None:
    with pytest.raises(StageFailed, match="opt must lie between min and max, got min 1, opt 64, max 32"):
        build(FP16, {"w": WEIGHT.astype(np.float16)}, {"batch": AxisRange(1, 64, 32)})


def test_a_given_profile_must_keep_a_fixed_axis(build: Build) -> None:
    wrong = Shapes(min=(1, 128), opt=(4, 128), max=(8, 128))
    with pytest.raises(StageFailed, match="axis 1 is fixed at 256, got 128 to 128"):
        build(FP16, {"w": WEIGHT.astype(np.float16)}, profiles=({"x": wrong},))


def test_several_profiles_are_built_and_recorded(build: Build) -> None:
    small = {"x": Shapes(min=(1, 256), opt=(1, 256), max=(1, 256))}
    large = {"x": Shapes(min=(2, 256), opt=(16, 256), max=(64, 256))}
    artifact = build(FP16, {"w": WEIGHT.astype(np.float16)}, profiles=(small, large))
    assert [profile["x"]["opt"] for profile in artifact.details["profiles"]] == [[1, 256], [16, 256]]


def test_an_option_without_effect_in_this_flavour_is_noted(build: Build) -> None:
    artifact = build(FP16, {"w": WEIGHT.astype(np.float16)}, hardware_compatibility_level="ampere_plus")
    assert any("hardware_compatibility_level has no effect" in note for note in artifact.details["notes"])


def test_an_option_this_flavour_cannot_serve_is_refused(build: Build) -> None:
    with pytest.raises(StageFailed, match="cannot build with version_compatible"):
        build(FP16, {"w": WEIGHT.astype(np.float16)}, version_compatible=True)


@pytest.mark.skipif(tensorrt_device.find() is not None, reason="a GPU is here")
def test_an_option_that_needs_a_gpu_says_so(build: Build) -> None:
    with pytest.raises(BackendMissing, match="needs a GPU to build with strip_plan"):
        build(FP16, {"w": WEIGHT.astype(np.float16)}, strip_plan=True)


def test_a_driver_too_old_for_compiled_code_is_said_with_what_to_leave_out() -> None:
    messages = Messages()
    messages.errors.append("CUDA error 222 loading a module.")
    error = tensorrt_build._failure(tensorrt_library.load(), messages)
    assert isinstance(error, BackendMissing)
    assert "driver is too old" in str(error)
    assert "strip_plan" in str(error.hint)
    messages.errors[0] = "CUDA error 2 loading a module."
    assert isinstance(tensorrt_build._failure(tensorrt_library.load(), messages), StageFailed)


def test_plans_are_built_for_the_compute_capabilities_asked_for(build: Build) -> None:
    artifact = build(FP16, {"w": WEIGHT.astype(np.float16)}, compute_capabilities=("8.9", "12.0"))
    manifest = tensorrt_plan.read(artifact.path)
    assert manifest.compute_capabilities == ("8.9", "12.0")
    assert b"sm89" in artifact.path.read_bytes()
    with pytest.raises(StageFailed, match=r"does not build for compute capability 6\.1"):
        build(FP16, {"w": WEIGHT.astype(np.float16)}, compute_capabilities=("6.1",))


def test_too_small_a_workspace_is_told_with_the_key_to_raise(build: Build) -> None:
    with pytest.raises(StageFailed, match="Raise `workspace`"):
        build(FP16, {"w": WEIGHT.astype(np.float16)}, workspace=1 << 10)


def test_an_exception_in_the_progress_callback_stops_the_build(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(ATTENTION)
    onnx.save(model, tmp_path / "model.onnx")

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TensorRTEngine().build(BuildRequest(tmp_path / "model.onnx", tmp_path, BATCH), stop)


def test_progress_counts_steps_of_named_phases(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(ATTENTION), tmp_path / "model.onnx")
    seen: list[tuple[str, int, int]] = []
    TensorRTEngine().build(BuildRequest(tmp_path / "model.onnx", tmp_path, BATCH), lambda *step: seen.append(step))
    assert ("Building engine", 1, 6) in seen
    assert all(1 <= done <= total for _, done, total in seen)


def test_a_file_that_is_no_onnx_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(StageFailed, match=r"model\.onnx cannot be read as ONNX"):
        TensorRTEngine().build(BuildRequest(tmp_path / "model.onnx", tmp_path, BATCH), lambda *step: None)


@pytest.mark.parametrize(
    ("capability", "counts", "said"),
    [
        (
            "9.0",
            {"matmuls": {"int8": 3, "fp16": 1}, "convolutions": {"fp8": 2}},
            "3 matmuls in int8, 2 convolutions in fp8",
        ),
        ("9.0", {"matmuls": {"int8 weights, fp16": 3}}, None),
        ("12.0", {"matmuls": {"int8": 3}}, None),
        (None, {"matmuls": {"int8": 3}}, None),
    ],
)
def test_products_in_8_bits_that_a_gpu_has_no_kernels_for_are_noted(
    capability: str | None, counts: dict[str, dict[str, int]], said: str | None
) -> None:
    flavour = next(item for item in tensorrt_library.FLAVOURS if item.module == "tensorrt_rtx")
    library = tensorrt_library.Library(api=None, flavour=flavour, version="1.6.1.120")
    device = None
    if capability is not None:
        device = tensorrt_device.Device(name="a GPU", compute_capability=capability, driver="13.0")
    layers = tensorrt_layers.Layers(source="inspector", counts=counts)
    notes = tensorrt_build._emulated(library, layers, device)
    assert [said is not None and said in note for note in notes] == ([True] if said else [])
