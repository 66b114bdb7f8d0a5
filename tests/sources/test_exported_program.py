"""Programs saved by torch.export: captured as they are, refused when they would run code."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimize.engines.base import AxisRange
from optimize.errors import UsageError
from optimize.sources.exported_program import ExportedProgramSource


def ignore(*_: object) -> None:
    """Progress nobody watches."""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"linear": self.layer(x) * scale[:, None]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "net.pt2"
    batch = torch.export.Dim("rows", min=1, max=16)
    program = torch.export.export(
        Net().eval(),
        (torch.randn(2, 4),),
        {"scale": torch.randn(2)},
        dynamic_shapes={"x": {0: batch}, "scale": {0: batch}},
    )
    torch.export.save(program, path)
    return path


def test_a_saved_program_is_captured_with_its_limits(saved: Path) -> None:
    source = ExportedProgramSource(path=saved.name, base=saved.parent)
    assert source.check() is None
    captured = source.capture(ignore)
    assert [(spec.name, spec.shape) for spec in captured.inputs] == [("x", ("batch", 4)), ("scale", ("batch",))]
    assert [(spec.name, spec.shape) for spec in captured.outputs] == [("linear", ("batch", 2))]
    assert captured.ranges == {"batch": AxisRange(1, 8, 16)}
    assert all(check["relative_l2"] < 1e-6 for check in captured.checks)
    with source.original(threads=1) as original:
        result = original.run({"x": np.zeros((3, 4), np.float32), "scale": np.ones(3, np.float32)})
    assert result["linear"].shape == (3, 2)


def test_names_and_ranges_may_be_given(saved: Path) -> None:
    source = ExportedProgramSource(
        path=saved.name,
        base=saved.parent,
        input_names=("features", "weight"),
        output_names=("mul",),
        ranges={"batch": (2, 3, 4)},
    )
    captured = source.capture(ignore)
    assert [value.name for value in captured.model.graph.inputs] == ["features", "weight"]
    assert [value.name for value in captured.model.graph.outputs] == ["mul"]
    assert captured.ranges == {"batch": AxisRange(2, 3, 4)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input_names": ("a",)}, r"has 2 inputs \(x, scale\); input_names has 1 \(a\)"),
        ({"output_names": ("a", "b")}, r"has 2 \(a, b\), the module returns 1"),
        ({"ranges": {"rows": (1, 2, 3)}}, "no dynamic axis 'rows'; it has: batch"),
        ({"ranges": {"batch": (1, 2, 99)}}, "asks for 1 to 99, the program was exported for 1 to 16"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], sentence: str, saved: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        ExportedProgramSource(path=saved.name, base=saved.parent, **options).capture(ignore)


class Harm:
    """Unpickling one writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def rewritten(saved: Path, path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of a .pt2 file with contents changed by record name."""
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as copy:
        for name in source.namelist():
            copy.writestr(name, change(name.partition("/")[2], source.read(name)))
    return path


def torch_pickle(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Harm(mark), buffer)
    return buffer.getvalue()


def in_sample_inputs(mark: Path) -> Callable[[str, bytes], bytes]:
    return lambda name, data: torch_pickle(mark) if name.startswith("data/sample_inputs/") else data


def in_weights(mark: Path) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if name == "data/weights/weight_0":
            return torch_pickle(mark)
        if name.startswith("data/weights/") and name.endswith(".json"):
            config = json.loads(data)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return data

    return change


def in_constants(mark: Path) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if name.startswith("data/constants/") and name.endswith(".json"):
            payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"extra": payload}}).encode()
        return pickle.dumps(Harm(mark)) if name == "data/constants/opaque_obj_0" else data

    return change


def in_an_expression(mark: Path) -> Callable[[str, bytes], bytes]:
    attack = json.dumps(f"__import__('pathlib').Path({str(mark)!r}).touch()")

    def change(name: str, data: bytes) -> bytes:
        if not name.startswith("models/"):
            return data
        head, _, tail = data.decode().partition('"expr_str": "')
        return (head + '"expr_str": ' + attack + tail[tail.index('"') + 1 :]).encode()

    return change


@pytest.mark.parametrize("attack", [in_sample_inputs, in_weights, in_constants, in_an_expression])
def test_a_file_that_would_run_code_is_refused_before_it_does(
    attack: Callable[[Path], Callable[[str, bytes], bytes]], saved: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "harmed"
    rewritten(saved, tmp_path / "net.pt2", attack(mark))
    with pytest.raises(UsageError, match=r"pickle|no arithmetic"):
        ExportedProgramSource(path="net.pt2", base=tmp_path).capture(ignore)
    assert not mark.exists()


def test_a_copy_that_was_not_attacked_still_loads(saved: Path, tmp_path: Path) -> None:
    rewritten(saved, tmp_path / "net.pt2", lambda _, data: data)
    assert ExportedProgramSource(path="net.pt2", base=tmp_path).original().inputs[0].name == "x"


def test_pickled_example_inputs_run_when_they_are_allowed_to(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "harmed"
    rewritten(saved, tmp_path / "net.pt2", in_sample_inputs(mark))
    with pytest.raises(UsageError, match="cannot be loaded"):  # the example itself makes no sense
        ExportedProgramSource(path="net.pt2", base=tmp_path, allow_pickle=True).capture(ignore)
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"not a program", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(UsageError, match=r"'net.pt2'") as caught:
        ExportedProgramSource(path="net.pt2", base=tmp_path).capture(ignore)
    assert "\n" not in str(caught.value)
    assert "there is no file" in (ExportedProgramSource(path="gone.pt2", base=tmp_path).check() or "")
