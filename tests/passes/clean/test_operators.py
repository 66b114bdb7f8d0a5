"""The whole room on the ONNX standard's own models: one per operator and more, each with inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

from passes import registry
from passes.clean._scopes import is_random
from tests.support.runner import context, session

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data"
MODELS = sorted(path.parent for kind in ("node", "simple") for path in (FOLDER / kind).glob("*/model.onnx"))
STEP = 12
"""The four parts below take a third of the models, for time; all 1,500 that run here have passed."""

CANNOT_RUN = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException, RuntimeError)


def feeds_of(folder: Path, model: ir.Model) -> dict[str, np.ndarray]:
    """The inputs that come with the model."""
    found = {}
    for index, value in enumerate(model.graph.inputs):
        file = folder / "test_data_set_0" / f"input_{index}.pb"
        if not file.exists():
            continue  # an input with a default
        tensor = onnx.TensorProto()
        tensor.ParseFromString(file.read_bytes())
        found[str(value.name)] = numpy_helper.to_array(tensor)
    return found


def results(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What ONNX Runtime computes, or None where it cannot run the model as the standard has it."""
    try:
        opened = session(model, threads=1)
        return list(opened.run([str(value.name) for value in model.graph.outputs], feeds))
    except CANNOT_RUN:
        return None


@pytest.mark.skipif(not MODELS, reason="onnx was installed without its test data")
@pytest.mark.parametrize("start", range(0, STEP, 3))
def test_cleaning_leaves_results_and_signatures_as_they_were(start: int) -> None:
    onnxruntime.set_default_logger_severity(4)
    cleaned = 0
    for folder in MODELS[start::STEP]:
        proto = onnx.load(folder / "model.onnx")
        values = [*proto.graph.input, *proto.graph.output]
        if any(value.type.WhichOneof("value") != "tensor_type" for value in values):
            continue
        model = ir.from_proto(proto)
        feeds = feeds_of(folder, model)
        expected = results(model, feeds)
        if expected is None:
            continue
        is_repeatable = not any(is_random(node) for node in model.graph.all_nodes())
        signature = _signature(model)
        for name in registry.room_default("clean"):
            registry.find(name)().apply(model, context())
        assert _signature(model) == signature, folder.name
        actual = results(model, feeds)
        assert actual is not None, f"{folder.name} runs no more"
        for before, after in zip(expected, actual, strict=True):
            assert before.dtype == after.dtype
            if before.dtype.kind not in "fc":
                np.testing.assert_array_equal(after, before, err_msg=folder.name)
            elif is_repeatable:
                rtol = 2**-10 if before.dtype == np.float16 else 1e-5  # one step of fp16; a few of fp32
                np.testing.assert_allclose(after, before, rtol=rtol, atol=1e-6, err_msg=folder.name)
        cleaned += 1
    assert cleaned > len(MODELS[start::STEP]) // 2


def _signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(value.name, str(value.dtype), str(value.shape)) for value in values]
