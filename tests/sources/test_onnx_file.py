"""ONNX files: broken, hostile, huge, old; and what is read from good ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimize.engines.base import AxisRange
from optimize.errors import UsageError
from optimize.sources.onnx_file import OnnxSource

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
GOOD = HEAD + "agraph (float[batch, 2] x) => (float[batch, 3] y) <float[2, 3] w> { y = MatMul(x, w) }"
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def ignore(*_: object) -> None:
    """Progress nobody watches."""


def write(folder: Path, text: str, name: str = "model.onnx") -> OnnxSource:
    (folder / name).write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return OnnxSource(path=name, base=folder)


def external(
    folder: Path, location: str = "model.data", weight: np.ndarray = WEIGHT, offset: int = 0
) -> OnnxSource:
    """The good model with its weight said to be at `location`."""
    proto = onnx.parser.parse_model(GOOD)
    del proto.graph.initializer[:]
    tensor = onnx.TensorProto(name="w", dims=weight.shape, data_type=onnx.TensorProto.FLOAT, data_location=1)
    for key, value in {"location": location, "offset": str(offset), "length": str(weight.nbytes)}.items():
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(tensor)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return OnnxSource(path="model.onnx", base=folder)


def test_a_good_file_gives_its_inputs_outputs_and_ranges(tmp_path: Path) -> None:
    (tmp_path / "model.data").write_bytes(WEIGHT.tobytes())
    source = external(tmp_path)
    assert source.check() is None
    assert source.files() == (tmp_path / "model.onnx", tmp_path / "model.data")
    captured = source.capture(ignore)
    assert [(spec.name, spec.dtype, spec.shape) for spec in captured.inputs] == [("x", "float32", ("batch", 2))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in captured.outputs] == [("y", "float32", ("batch", 3))]
    assert captured.ranges == {"batch": AxisRange(1, 8, 64)}
    assert any("'batch' has no range" in note for note in captured.notes)
    assert isinstance(captured.model.graph.initializers["w"].const_value, ir.ExternalTensor)
    with source.original(threads=1) as original:
        np.testing.assert_array_equal(original.run({"x": np.eye(2, dtype=np.float32)})["y"], WEIGHT)


def test_ranges_are_taken_and_unknown_axes_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("<float[2, 3] w>", "<float[2, 3] w = {0, 1, 2, 3, 4, 5}>"))
    ranges = {"batch": (1, 2, 3)}
    assert OnnxSource(path="model.onnx", base=tmp_path, ranges=ranges).capture(ignore).ranges == {
        "batch": AxisRange(1, 2, 3)
    }
    with pytest.raises(UsageError, match="no dynamic axis 'tokens'; they have: batch"):
        OnnxSource(path="model.onnx", base=tmp_path, ranges={"tokens": (1, 2, 3)}).capture(ignore)


def place(folder: Path, location: str) -> None:
    """Put the weight's bytes where a hostile or careless model says they are."""
    if location == "link.data":
        (folder.parent / "outside.data").write_bytes(WEIGHT.tobytes())
        (folder / location).symlink_to(folder.parent / "outside.data")
    elif location == "hard.data":
        (folder.parent / "outside.data").write_bytes(WEIGHT.tobytes())
        os.link(folder.parent / "outside.data", folder / location)
    elif location == "short.data":
        (folder / location).write_bytes(WEIGHT.tobytes()[:-4])
    elif location == "../outside.data":
        (folder.parent / "outside.data").write_bytes(WEIGHT.tobytes())


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("../outside.data", "data must lie in the model's own folder"),
        ("/etc/hostname", "data must lie in the model's own folder"),
        ("link.data", "a link that leaves the model's folder"),
        ("hard.data", "2 hard links"),
        ("short.data", "at bytes 0 to 24; the file has 20 bytes"),
        ("gone.data", "which is missing"),
        ("", "is no file name"),
    ],
)
def test_external_data_stays_in_the_models_folder_and_is_whole(
    location: str, sentence: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    place(folder, location)
    source = external(folder, location)
    assert sentence in (source.check() or "")
    with pytest.raises(UsageError, match="weight 'w' says its data is in"):
        source.capture(ignore)
    with pytest.raises(UsageError, match="weight 'w' says its data is in"):
        source.original()


def test_a_negative_offset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.data").write_bytes(WEIGHT.tobytes())
    with pytest.raises(UsageError, match=r"says its data is in|cannot be read"):
        external(tmp_path, offset=-8).capture(ignore)


def test_nan_in_a_weight_is_named_and_infinity_is_not(tmp_path: Path) -> None:
    weight = WEIGHT.copy()
    weight[0, 0] = -np.inf
    (tmp_path / "model.data").write_bytes(weight.tobytes())
    external(tmp_path).capture(ignore)
    weight[1, 2] = np.nan
    (tmp_path / "model.data").write_bytes(weight.tobytes())
    with pytest.raises(UsageError, match=r"weight 'w' \(shape \[2, 3\]\) holds NaN \(1 among"):
        external(tmp_path).capture(ignore)


def random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def half_a_model(path: Path) -> None:
    whole = onnx.parser.parse_model(GOOD).SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, "there is no file"),
    "a folder": (lambda path: path.mkdir(), "is a folder; expected an ONNX file"),
    "empty": (lambda path: path.touch(), "'model.onnx' is empty"),
    "random bytes": (random_bytes, "is not an ONNX file, or it is damaged"),
    "text": (lambda path: path.write_text("hello") and None, "is not an ONNX file, or it is damaged"),
    "half a model": (half_a_model, "damaged|cannot be read|not a valid"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    damage, sentence = DAMAGED[case]
    damage(tmp_path / "model.onnx")
    source = OnnxSource(path="model.onnx", base=tmp_path)
    with pytest.raises(UsageError, match=sentence) as caught:
        source.capture(ignore)
    assert "\n" not in str(caught.value)
    assert source.check() == str(caught.value)


INVALID = {
    "a cycle": ("y = Add(x, b) b = Abs(y)", "the graph has a cycle"),
    "a name given twice": ("y = Abs(x) y = Neg(x)", "cannot be read: Output 'y' is redeclared"),
    "an unknown operator": ("y = Nothing(x)", "not a valid ONNX model: .*Nothing"),
    "an input of nothing": ("y = Add(x, nothing)", "node 'Add' needs 'nothing', which nothing makes"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_graph_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    body, sentence = INVALID[case]
    source = write(tmp_path, f"{HEAD} agraph (float[batch, 2] x) => (float[batch, 2] y) {{ {body} }}")
    with pytest.raises(UsageError, match=sentence):
        source.capture(ignore)


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    source = write(tmp_path, f"{HEAD} agraph (float[batch] x) => (float[batch] y) {{ y = Neg(a) a = Abs(x) }}")
    assert [node.op_type for node in source.capture(ignore).model.graph] == ["Abs", "Neg"]


def test_unnamed_axes_get_names_so_that_they_can_have_ranges(tmp_path: Path) -> None:
    source = write(tmp_path, f"{HEAD} agraph (float[?, 2, ?] x) => (float[?, 2, ?] y) {{ y = Abs(x) }}")
    captured = source.capture(ignore)
    assert captured.inputs[0].shape == ("batch", 2, "x_axis_2")
    assert set(captured.ranges) == {"batch", "x_axis_2"}


def test_weights_listed_as_inputs_become_constants(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        f"{HEAD} agraph (float[batch, 2] x, float[2] w) => (float[batch, 2] y) {{ y = Add(x, w) }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    captured = OnnxSource(path="model.onnx", base=tmp_path).capture(ignore)
    assert [spec.name for spec in captured.inputs] == ["x"]
    assert "w" in captured.model.graph.initializers


def test_an_output_without_a_shape_gets_the_inferred_one(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(f"{HEAD} agraph (float[batch, 2] x) => (float[b, c] y) {{ y = Abs(x) }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert OnnxSource(path="model.onnx", base=tmp_path).capture(ignore).outputs[0].shape == ("batch", 2)


def test_more_than_two_gigabytes_stay_on_disk(tmp_path: Path) -> None:
    shape = (2, 270_000_000)
    with open(tmp_path / "model.data", "wb") as file:
        file.truncate(shape[0] * shape[1] * 4)  # a hole in the file: 2.16 GB that take no room
    source = external(tmp_path, weight=np.broadcast_to(np.float32(0), shape))
    before = anonymous_bytes()
    weight = source.capture(ignore).model.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    assert anonymous_bytes() - before < 200e6


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    pytest.skip("this system does not tell anonymous memory")


def test_a_loop_sees_its_own_inputs_and_those_around_it(tmp_path: Path) -> None:
    body = """
        n = Constant<value_ints = [3]>()
        count = Squeeze(n)
        go = Constant<value = bool {1}>()
        y = Loop<body = step (int64 i, bool c, float[2] sum) => (bool c_out, float[2] next) {
            c_out = Identity(c)
            next = Add(sum, x)
        }>(count, go, x)
    """
    source = write(tmp_path, f"{HEAD} agraph (float[2] x) => (float[2] y) {{ {body} }}")
    source.capture(ignore)
    with source.original(threads=1) as original:
        assert original.run({"x": np.ones(2, np.float32)})["y"].tolist() == [4, 4]
