"""ModelOpt's ONNX path behind a pass: what it quantizes is listed, what it does wrong is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes import names
from passes.base import PassFailed
from passes.quantize import _modelopt_result, _modelopt_run
from passes.quantize.modelopt import QuantizeModelOpt
from passes.target import Target
from tests.support.calibration import Batches, normal
from tests.support.runner import CPU, context, run

needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason='nvidia-modelopt is not installed (the extra "modelopt")'
)

TWO_LAYERS = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, tokens, 64] x) => (float[batch, tokens, 64] y, float[batch, tokens, 64] h) {
    [first] m = MatMul(x, a)
    [bias] h = Add(m, c)
    [act] r = Relu(h)
    [second] y = MatMul(r, b)
}"""


def two_layers() -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TWO_LAYERS)
    for name, shape in (("a", (64, 64)), ("b", (64, 64)), ("c", (64,))):
        array = rng.normal(0, 0.1, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    for node in model.graph:
        node.metadata_props[names.MODULE] = f"net.{node.name}"
    return model


def data() -> Batches:
    return normal((8, 6, 64))


@needs_modelopt
def test_int8_layers_are_quantized_listed_by_module_and_close_to_the_original(tmp_path: Path) -> None:
    model, original = two_layers(), two_layers()
    result = QuantizeModelOpt(calibration="max").apply(model, context(calibration=data(), scratch=str(tmp_path)))
    assert {"net.first", "net.second"} <= set(result.changed)
    assert result.patterns[0].found == 2
    stored = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert sorted(value.shape.numpy() for value in stored if value.shape.rank() == 2) == [(64, 64), (64, 64)]
    assert [value.name for value in model.graph.outputs] == ["y", "h"]
    assert str(model.graph.outputs[0].shape) == "[batch,tokens,64]"
    feeds = next(iter(normal((3, 5, 64), batches=1, seed=9).feeds()))
    expected, got = run(original, feeds), run(model, feeds)
    for name, old in expected.items():
        # 8 bits: a step is 1/127 of the range, about 4 standard deviations; two layers add up.
        assert np.linalg.norm(got[name] - old) <= 0.04 * np.linalg.norm(old)
        assert np.linalg.norm(1.1 * got[name] - old) > 0.04 * np.linalg.norm(old)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    again = QuantizeModelOpt(calibration="max").apply(model, context(calibration=data(), scratch=str(tmp_path)))
    assert again.rewrites == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


@needs_modelopt
def test_a_skipped_layer_stays_and_is_named_with_its_reason() -> None:
    model = two_layers()
    options = QuantizeModelOpt(format="int4", algorithm="rtn", skip=("net.second",))
    result = options.apply(model, context())
    assert result.changed == ("net.first",)
    assert [(item.module, item.reason) for item in result.skips] == [("net.second", "listed under skip")]
    assert any("not run" in note for note in result.notes)


@needs_modelopt
def test_a_model_with_nothing_quantized_is_refused_instead_of_passed_on() -> None:
    model = two_layers()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    everything = QuantizeModelOpt(format="int4", algorithm="rtn", skip=("*",))
    with pytest.raises(PassFailed, match=r"quantized nothing \(first: listed under skip"):
        everything.apply(model, context())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@needs_modelopt
def test_where_modelopt_stops_its_last_words_are_the_reason_and_its_noise_stays_off_the_console(
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong = Batches(({"x": np.ones((2, 3, 65), np.float32)},))
    with pytest.raises(PassFailed, match=r"ModelOpt stopped: .*65"):
        QuantizeModelOpt(calibration="max").apply(two_layers(), context(calibration=wrong))
    out, err = capfd.readouterr()
    assert out == err == ""


def test_without_modelopt_the_pass_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = QuantizeModelOpt().missing()
    assert sentence is not None
    assert 'pip install "model-optimize[modelopt]"' in sentence
    with pytest.raises(PassFailed, match="is not installed"):
        QuantizeModelOpt().apply(two_layers(), context(calibration=data()))


def test_awq_is_refused_batches_of_two_lengths_that_modelopt_cannot_join() -> None:
    ragged = Batches(tuple({"x": np.ones((2, tokens, 64), np.float32)} for tokens in (5, 7)))
    with pytest.raises(PassFailed, match=r"one shape; input 'x' has \[2, 5, 64\] and \[2, 7, 64\]"):
        QuantizeModelOpt(format="int4").apply(two_layers(), context(calibration=ragged))


def test_without_data_or_with_nan_in_it_modelopt_is_not_even_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modelopt_run, "missing", lambda: None)
    monkeypatch.setattr(_modelopt_run, "_run", lambda *_: pytest.fail("ModelOpt was started"))
    with pytest.raises(PassFailed, match="would take random numbers"):
        QuantizeModelOpt().apply(two_layers(), context())
    spoiled = Batches(({"x": np.full((1, 2, 64), np.nan, np.float32)},))
    with pytest.raises(PassFailed, match="holds NaN or infinity in calibration batch 1"):
        QuantizeModelOpt().apply(two_layers(), context(calibration=spoiled))


def test_a_model_that_came_back_broken_is_refused_with_the_reason() -> None:
    before, world = two_layers(), context(calibration=data())
    renamed = two_layers()
    renamed.graph.outputs[1].name = "hidden"
    with pytest.raises(PassFailed, match="changed the model's outputs"):
        _modelopt_result.refuse_broken(renamed, before, world)
    spoiled = two_layers()
    spoiled.graph.initializers["c"].const_value = ir.tensor(np.full(64, np.nan, np.float32), name="c")
    with pytest.raises(PassFailed, match="gives NaN or infinity in output"):
        _modelopt_result.refuse_broken(spoiled, before, world)
    invalid = two_layers()
    invalid.graph[0].op_type = "MatMull"
    with pytest.raises(PassFailed, match="wrote an invalid model"):
        _modelopt_result.refuse_broken(invalid, before, world)
    assert _modelopt_result.refuse_broken(two_layers(), before, world) == 0


def test_a_target_without_the_format_is_told_what_to_use() -> None:
    old = turing()
    assert QuantizeModelOpt(format="fp8").check(old) == "Turing does not run FP8; use int8."
    assert QuantizeModelOpt(format="int8").check(old) is None


def turing() -> Target:
    return CPU.model_copy(update={"title": "Turing", "dialect": "tensorrt", "precisions": ("fp32", "int8")})
