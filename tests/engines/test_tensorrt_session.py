"""Plans run on a GPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from optimize.engines import tensorrt_cuda, tensorrt_device, tensorrt_library
from optimize.engines.base import AxisRange, BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import Shapes, TensorRTOptions
from optimize.engines.tensorrt_session import TensorRTSession
from optimize.errors import BackendMissing, StageFailed, UsageError

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(tensorrt_device.find() is None, reason="no GPU here"),
]

RNG = np.random.default_rng(0)
W = RNG.standard_normal((64, 32)).astype(np.float16) / 8
MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float16[batch,64] x) => (float16[batch,32] y) { a = MatMul(x, w) y = Relu(a) }
"""
NON_ZERO = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2,4] x) => (int64[2,found] y) { y = NonZero(x) }
"""

Open = Callable[..., TensorRTSession]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def run(text: str = MODEL, **options: Any) -> TensorRTSession:
        model = onnx.parser.parse_model(text)
        if " w)" in text:
            model.graph.initializer.append(numpy_helper.from_array(W, "w"))
        onnx.save(model, tmp_path / "model.onnx")
        engine = TensorRTEngine(TensorRTOptions(**options))
        request = BuildRequest(tmp_path / "model.onnx", tmp_path, {"batch": AxisRange(1, 4, 8)})
        return engine.open(engine.build(request, lambda *step: None).path)

    return run


def feeds(batch: int) -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((batch, 64)).astype(np.float16)}


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    return np.maximum(given["x"].astype(np.float32) @ W.astype(np.float32), 0)


def test_outputs_agree_with_numpy_at_every_size_of_the_profile(opened: Open) -> None:
    with opened() as session:
        for batch in (1, 4, 8, 3):
            given = feeds(batch)
            found = session.run(given)["y"]
            assert found.dtype == np.float16
            # float16 keeps 11 significant bits; sums of 64 terms near 1 stay within a few steps of it.
            np.testing.assert_allclose(found, expected(given), atol=2**-8, rtol=2**-8)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_prepared_call_leaves_the_right_outputs(opened: Open, cuda_graph: bool) -> None:
    with opened(cuda_graph=cuda_graph) as session:
        given = feeds(4)
        call = session.prepare(given)
        for _ in range(3):
            call()
        session.lane.download()
        session.lane.stream.synchronize()
        np.testing.assert_allclose(session.lane.results()["y"], expected(given), atol=2**-8, rtol=2**-8)


@pytest.mark.parametrize("way", ["TorchStream", "PythonStream"])
def test_torch_and_cuda_python_give_the_same(opened: Open, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "TorchStream":
        pytest.importorskip("torch")
    else:
        pytest.importorskip("cuda.bindings.runtime")
    monkeypatch.setattr(tensorrt_cuda, "stream", getattr(tensorrt_cuda, way))
    with opened() as session:
        given = feeds(4)
        np.testing.assert_allclose(session.run(given)["y"], expected(given), atol=2**-8, rtol=2**-8)
        session.prepare(given)()
        assert min(session.timings(given, runs=20).compute_ms) > 0


def test_timings_have_one_entry_a_run_and_tell_the_devices_state(opened: Open) -> None:
    pytest.importorskip("pynvml")
    with opened() as session:
        told = session.timings(feeds(8), runs=300)
        assert len(told.compute_ms) == len(told.h2d_ms) == len(told.enqueue_ms) == 300
        assert told.telemetry is not None
        assert told.telemetry.sm_clock_mhz > 100


def test_the_profile_that_fits_is_chosen(opened: Open) -> None:
    small = {"x": Shapes(min=(1, 64), opt=(1, 64), max=(1, 64))}
    large = {"x": Shapes(min=(2, 64), opt=(8, 64), max=(8, 64))}
    with opened(profiles=(small, large)) as session:
        for batch in (1, 8, 1):
            given = feeds(batch)
            np.testing.assert_allclose(session.run(given)["y"], expected(given), atol=2**-8, rtol=2**-8)


def test_shapes_outside_every_profile_are_told(opened: Open) -> None:
    with opened() as session, pytest.raises(StageFailed, match=r"input 'x' \[9, 64\] is outside \[1, 64\]"):
        session.run(feeds(9))


def test_wrong_feeds_are_told_before_the_engine_sees_them(opened: Open) -> None:
    with opened() as session, pytest.raises(UsageError, match="expected float16, got float32"):
        session.run({"x": np.zeros((4, 64), np.float32)})


def test_an_output_whose_shape_depends_on_data_comes_back_in_its_own_shape(opened: Open) -> None:
    if tensorrt_library.load().flavour.module == "tensorrt_rtx":
        pytest.skip("TensorRT for RTX takes NonZero from a plugin library alone")
    with opened(NON_ZERO) as session:
        x = np.array([[0, 1, 0, 2], [3, 0, 0, 0]], np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.stack(np.nonzero(x)))


def test_layer_times_and_layers_name_what_runs(opened: Open) -> None:
    with opened() as session:
        times = session.layer_times(feeds(4))
        assert times
        assert all(value > 0 for value in times.values())
        assert session.layers()
        assert sum(session.placement().values()) >= 1


def test_streams_in_parallel_run_as_often_as_asked(opened: Open) -> None:
    with opened() as session:
        assert session.concurrent(feeds(4), streams=3, runs=20) > 0


def test_a_stripped_plan_takes_its_weights_from_the_onnx_file(opened: Open) -> None:
    try:
        stripped = opened(strip_plan=True)
    except BackendMissing as error:
        if "driver is too old" not in error.message:
            raise
        pytest.skip(error.message)
    with stripped as session:
        given = feeds(4)
        np.testing.assert_allclose(session.run(given)["y"], expected(given), atol=2**-8, rtol=2**-8)


def test_streamed_weights_give_the_same(opened: Open) -> None:
    with opened(weight_streaming=True) as session:
        given = feeds(4)
        np.testing.assert_allclose(session.run(given)["y"], expected(given), atol=2**-8, rtol=2**-8)
