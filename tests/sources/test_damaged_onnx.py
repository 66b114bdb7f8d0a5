"""Damage that fuzzing found its way through with: each is refused in a sentence now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from optimize.errors import UsageError
from optimize.sources.onnx_file import OnnxSource
from tests.support import tiny


def no_output_type(model: onnx.ModelProto) -> bytes:
    model.graph.output[0].type.tensor_type.elem_type = 0
    return model.SerializeToString()


def weights_of_another_size(model: onnx.ModelProto) -> bytes:
    model.graph.initializer[1].dims[0] *= 2
    return model.SerializeToString()


def names_that_are_no_text(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString().replace(b"MatMul", b"Mat\xe5ul")


@pytest.mark.parametrize("damage", [no_output_type, weights_of_another_size, names_that_are_no_text])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[onnx.ModelProto], bytes]) -> None:
    path = tiny.write_model(tmp_path / "m.onnx", width=4)
    path.write_bytes(damage(onnx.load(path)))
    with pytest.raises(UsageError) as refused:
        OnnxSource(path=path.name, base=tmp_path).capture(lambda *_: None)
    assert "\n" not in refused.value.message
