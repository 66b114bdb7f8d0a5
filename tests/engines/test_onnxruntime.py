"""ONNX Runtime as an engine: what it builds, what it refuses, and the faults of its own optimiser."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from optimize.engines import onnxruntime_artifact, onnxruntime_faults, onnxruntime_providers
from optimize.engines.base import Artifact, AxisRange, BuildRequest
from optimize.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeOptions
from optimize.engines.onnxruntime_artifact import integer_nodes
from optimize.engines.onnxruntime_faults import relative_l2
from optimize.engines.onnxruntime_session import open_onnx
from optimize.errors import BackendMissing, StageFailed, UsageError


def quiet(what: str, done: int, total: int) -> None:
    """Progress nobody watches."""


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])
    return onnx.numpy_helper.from_array(values.astype(np.float32), name)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two linear layers with a Gelu written out, which ONNX Runtime fuses."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[batch, 64] x) => (float[batch, 64] y)
        <float half = {0.5}, float one = {1.0}, float root = {1.41421354}> {
          a = MatMul(x, w)
          d = Div(a, root)
          e = Erf(d)
          p = Add(e, one)
          m = Mul(a, p)
          h = Mul(m, half)
          y = MatMul(h, w) }"""
    )
    model.graph.initializer.append(weight("w", 64, 64))
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def relu_then_fp8(tmp_path: Path) -> Path:
    """Relu before an FP8 quantizer: ONNX Runtime 1.32 drops the Relu ('ReluQuantRewrite')."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[batch, 3, 8, 8] x) => (float[batch, 8, 8, 8] y)
        <float s = {0.01}> {
          c = Conv<pads=[1,1,1,1]>(x, w)
          r = Relu(c)
          q = QuantizeLinear(r, s, z)
          d = DequantizeLinear(q, s, z)
          y = Conv<pads=[1,1,1,1]>(d, v) }"""
    )
    zero = onnx.helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])
    model.graph.initializer.extend([weight("w", 8, 3, 3, 3), weight("v", 8, 8, 3, 3, seed=1), zero])
    onnx.save(model, tmp_path / "fp8.onnx")
    return tmp_path / "fp8.onnx"


def build(model: Path, **options: object) -> tuple[OnnxRuntimeEngine, Artifact]:
    engine = OnnxRuntimeEngine(OnnxRuntimeOptions(threads=1, **options))  # type: ignore[arg-type]
    directory = model.parent / "engine"
    directory.mkdir()
    request = BuildRequest(model, directory, {"batch": AxisRange(1, 4, 8)})
    return engine, engine.build(request, quiet)


def test_the_saved_graph_is_fused_right_and_runs_without_the_original(plain: Path) -> None:
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    expected = open_onnx(plain, optimized=False, threads=1).run({"x": x})["y"]
    engine, artifact = build(plain)
    plain.unlink()
    with engine.open(artifact.path) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)
        assert "Erf" not in [op for _, op, _ in session.nodes()]
        assert session.inputs[0].shape == ("batch", 64)
    assert artifact.details["placement"] == {"CPUExecutionProvider": sum(artifact.details["ops"].values())}
    assert artifact.details["relative_l2_to_unoptimised"] < 1e-5
    assert artifact.details["notes"] == []
    json.dumps(artifact.details)


def test_weights_lie_beside_the_graph_and_count_into_its_size(plain: Path) -> None:
    _, artifact = build(plain)
    data = artifact.path.with_name("engine.onnx.data")
    assert data.stat().st_size >= 64 * 64 * 4
    assert artifact.size_bytes == sum(file.stat().st_size for file in artifact.path.parent.iterdir())


def test_a_relu_dropped_before_fp8_is_found_and_only_the_culprit_is_left_out(relu_then_fp8: Path) -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    truth = open_onnx(relu_then_fp8, optimized=False, threads=1).run({"x": x})["y"]
    wrong = open_onnx(relu_then_fp8, optimized=True, threads=1).run({"x": x})["y"]
    assert relative_l2(truth, wrong) > 0.3, "the fault is gone from ONNX Runtime: this guard can go too"
    engine, artifact = build(relu_then_fp8)
    assert artifact.details["disabled_optimizers"] == ["ReluQuantRewrite"]
    assert artifact.details["level"] == "all"
    assert "changes the results" in artifact.details["notes"][0]
    with engine.open(artifact.path) as session:
        assert relative_l2(truth, session.run({"x": x})["y"]) < 0.01


def test_a_fault_that_no_suspect_explains_lowers_the_whole_level(
    relu_then_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_faults, "SUSPECTS", ())
    _, artifact = build(relu_then_fp8)
    assert (artifact.details["level"], artifact.details["disabled_optimizers"]) == ("basic", [])
    assert "built with graph optimisation 'basic'" in artifact.details["notes"][-1]


def test_a_level_asked_for_is_never_raised(relu_then_fp8: Path) -> None:
    _, artifact = build(relu_then_fp8, graph_optimization="basic")
    assert (artifact.details["level"], artifact.details["notes"]) == ("basic", [])


def test_verification_can_be_left_out_on_request(relu_then_fp8: Path) -> None:
    _, artifact = build(relu_then_fp8, verify=False)
    assert artifact.details["disabled_optimizers"] == []
    assert artifact.details["relative_l2_to_unoptimised"] is None


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "all"])
def test_every_level_builds_and_opens(plain: Path, level: str) -> None:
    engine, artifact = build(plain, graph_optimization=level)
    assert artifact.details["level"] == level
    engine.open(artifact.path).run({"x": np.zeros((1, 64), np.float32)})


def test_the_prepared_call_computes_on_the_bound_inputs_into_the_bound_outputs(plain: Path) -> None:
    session = open_onnx(plain, threads=1)
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    call = session.prepare({"x": x})
    _, (_, output) = call.__defaults__[0]  # type: ignore[attr-defined]
    output.update_inplace(np.full((5, 64), 7, np.float32))
    call()
    np.testing.assert_array_equal(output.numpy(), session.run({"x": x})["y"])


def test_bfloat16_goes_in_and_comes_out() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (bfloat16[n] x) => (bfloat16[n] y, float[n] z) { y = Identity(x)  z = Cast<to = 1>(x) }"""
    )
    session = open_onnx(model.SerializeToString(), threads=1)
    x = np.array([1.0, -2.5, 3.0], ml_dtypes.bfloat16)
    got = session.run({"x": x})
    assert got["y"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got["y"], x)
    np.testing.assert_array_equal(got["z"], x.astype(np.float32))
    session.prepare({"x": x})()


def test_a_missing_file_and_a_broken_file_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"this is not a protobuf message at all")
    with pytest.raises(UsageError, match="not a valid ONNX file"):
        open_onnx(tmp_path / "broken.onnx")


def test_a_damaged_artifact_is_refused(plain: Path) -> None:
    engine, artifact = build(plain)
    data = artifact.path.with_name("engine.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(StageFailed, match=r"'engine.onnx.data' is missing or damaged"):
        engine.open(artifact.path)


def test_an_artifact_of_another_version_is_refused(plain: Path) -> None:
    engine, artifact = build(plain)
    manifest = artifact.path.with_name("engine.json")
    manifest.write_text(manifest.read_text().replace('"version": "1', '"version": "0'))
    with pytest.raises(StageFailed, match=r"made by onnxruntime 0.*Build it again"):
        engine.open(artifact.path)


def test_any_onnx_file_opens_and_a_damaged_manifest_is_refused(plain: Path) -> None:
    engine, artifact = build(plain)
    with engine.open(plain) as session:
        assert session.title.endswith("CPU, 1 thread")
        assert session.settings.level == "all"
    artifact.path.with_name("engine.json").write_text("{")
    with pytest.raises(StageFailed, match=r"'engine.json' beside it is damaged or of another"):
        engine.open(artifact.path)


def test_a_node_without_a_kernel_is_named(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 22]>
        g (bfloat16[n] x) => (bfloat16[n] y) { y = Add(x, x) }"""
    )
    model.graph.node[0].name = "sum"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(StageFailed, match=r"Add.*sum"):
        build(tmp_path / "m.onnx")


def test_a_sample_that_does_not_run_fails_and_random_numbers_that_do_not_are_noted(tmp_path: Path) -> None:
    """Reshape to a size that only some inputs have: random numbers of another size do not fit."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 4] x) => (float[m, 6] y) <int64[2] s = {-1, 6}> { y = Reshape(x, s) }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    _, artifact = build(tmp_path / "m.onnx")
    assert "not verified on random numbers" in artifact.details["notes"][0]
    sample = {"x": np.zeros((2, 4), np.float32)}
    (tmp_path / "other").mkdir()
    with pytest.raises(StageFailed, match="Reshape"):
        OnnxRuntimeEngine().build(BuildRequest(tmp_path / "m.onnx", tmp_path / "other", sample=sample), quiet)


def test_blocked_image_layouts_are_bound_to_the_processors_vectors(
    relu_then_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, artifact = build(relu_then_fp8)
    assert "com.microsoft.nchwc" in {node.domain for node in onnx.load(artifact.path).graph.node}
    assert any("this processor's vectors" in note for note in artifact.details["notes"])
    monkeypatch.setattr(onnxruntime_artifact, "processor_vectors", lambda: ("other",))
    with pytest.raises(StageFailed, match=r"laid out for a processor with .*; this one has other"):
        engine.open(artifact.path)


def test_a_graph_without_blocked_layouts_opens_on_any_processor(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, artifact = build(plain)
    monkeypatch.setattr(onnxruntime_artifact, "processor_vectors", lambda: ("other",))
    engine.open(artifact.path)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_a_missing_provider_says_what_to_install(plain: Path, provider: str) -> None:
    engine = OnnxRuntimeEngine(OnnxRuntimeOptions(provider=provider))  # type: ignore[arg-type]
    problem = engine.check()
    if problem is None:
        pytest.skip(f"{provider} works here")
    assert "pip install" in problem or "driver" in problem or "Install" in problem
    with pytest.raises(BackendMissing, match=provider):
        engine.build(BuildRequest(plain, plain.parent), quiet)


def test_a_provider_without_its_plugin_names_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnxruntime_providers.PLUGINS, "tensorrt-rtx", ("no_such_plugin", "no-such-plugin-cu13"))
    problem = onnxruntime_providers.missing("tensorrt-rtx")
    assert problem == "its plugin of ONNX Runtime is not installed. pip install no-such-plugin-cu13"


def test_a_plugin_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"no library")
    module = "def get_ep_name(): return 'broken'\ndef get_library_path(): return " + repr(str(library)) + "\n"
    (tmp_path / "broken_plugin.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(onnxruntime_providers.PLUGINS, "tensorrt-rtx", ("broken_plugin", "broken-plugin-cu13"))
    monkeypatch.setattr(onnxruntime_providers, "_missing_device", lambda: None)
    problem = str(onnxruntime_providers.missing("tensorrt-rtx"))
    assert "\n" not in problem
    assert problem.startswith("the plugin broken-plugin-cu13 of unknown version cannot be loaded (")
    assert "libbroken.so" in problem


def test_two_distributions_that_shadow_each_other_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_providers, "_version", lambda name: "1.0")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "shadows" in str(onnxruntime_providers.missing("cuda"))


def test_integer_shape_arithmetic_is_no_fallback_and_float_nodes_are(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 4] x) => (float[n, 4] y)
        <int64[2] s> { s = Shape(x)  y = Expand(x, s) }"""
    )
    for node in model.graph.node:
        node.name = node.op_type
    onnx.save(model, tmp_path / "m.onnx")
    assert integer_nodes(tmp_path / "m.onnx") == {"Shape"}
