"""Capture from a Python factory: names, sharing, checks at several shapes, and every way to get it wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines.base import AxisRange
from optimize.engines.onnxruntime_session import open_onnx
from optimize.errors import BackendMissing, StageFailed, UsageError
from optimize.sources.base import Capture
from optimize.sources.torch_module import TorchSource
from passes.names import module_of

UserFile = Callable[[str], Path]

TWO_HEADS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x, mask):
        hidden = torch.relu(self.encoder(x))
        return hidden * mask[:, None], self.head(hidden)

NET = Net()

def build():
    print("a user's own words")
    return {
        "module": NET,
        "inputs": {"mask": torch.ones(1), "x": torch.randn(1, 4)},
        "dynamic_axes": {"x": {0: "batch"}, "mask": {0: "batch"}},
        "ranges": {"batch": (1, 3, 7)},
        "output_names": ["relu", "linear"],
    }
"""


def ignore(*_: object) -> None:
    """Progress nobody watches."""


def source(folder: Path, **options: object) -> TorchSource:
    return TorchSource(factory="model.py:build", base=folder, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchSource, Capture]:
    folder = tmp_path_factory.mktemp("two_heads")
    (folder / "model.py").write_text("import torch\nfrom torch import nn\n" + TWO_HEADS)
    built = source(folder)
    return built, built.capture(ignore)


def test_inputs_and_outputs_are_named_and_ordered_as_the_user_asked(two_heads: tuple[TorchSource, Capture]) -> None:
    captured = two_heads[1]
    assert [value.name for value in captured.model.graph.inputs] == ["mask", "x"]
    assert [value.name for value in captured.model.graph.outputs] == ["relu", "linear"]
    assert [spec.shape for spec in captured.inputs] == [("batch",), ("batch", 4)]
    assert [spec.shape for spec in captured.outputs] == [("batch", 4), ("batch", 2)]


def test_an_output_named_like_an_inner_value_gives_a_model_that_loads(
    two_heads: tuple[TorchSource, Capture], tmp_path: Path
) -> None:
    built, captured = two_heads
    ir.save(captured.model, tmp_path / "model.onnx")
    feeds = {"mask": np.ones(3, np.float32), "x": np.random.default_rng(0).standard_normal((3, 4), np.float32)}
    with open_onnx(tmp_path / "model.onnx") as optimized, built.original(threads=1) as original:
        expected = original.run(feeds)
        for name, value in optimized.run(feeds).items():
            np.testing.assert_allclose(value, expected[name], rtol=2**-20, atol=1e-6)  # float32, two products
    names = [str(value.name) for node in captured.model.graph for value in node.outputs]
    names += list(captured.model.graph.initializers)
    assert len(set(names)) == len(names)


def test_weights_are_shared_with_the_module(two_heads: tuple[TorchSource, Capture]) -> None:
    weight = two_heads[1].model.graph.initializers["encoder.weight"].const_value
    assert weight is not None
    before = weight.numpy()[0, 0].copy()
    parameter = two_heads[0].torch_model().module.encoder.weight
    parameter.data[0, 0] += 1
    assert weight.numpy()[0, 0] == before + 1
    parameter.data[0, 0] -= 1


def test_nodes_know_their_module_and_nothing_of_the_machine(two_heads: tuple[TorchSource, Capture]) -> None:
    model = two_heads[1].model
    assert "encoder" in {module_of(node) for node in model.graph}
    text = str(ir.to_proto(model))
    assert "model.py" not in text
    assert "site-packages" not in text


def test_the_export_is_checked_at_each_end_of_each_range(two_heads: tuple[TorchSource, Capture]) -> None:
    checks = two_heads[1].checks
    assert [check["shape"] for check in checks] == [{"batch": 1}, {"batch": 3}, {"batch": 7}]
    assert all(check["relative_l2"] < 1e-6 for check in checks)


def test_capturing_prints_nothing_but_the_users_own_words_to_stderr(
    user_file: UserFile, capfd: pytest.CaptureFixture[str]
) -> None:
    source(user_file(TWO_HEADS)).capture(ignore)
    assert capfd.readouterr() == ("", "a user's own words\n")


def test_ranges_of_the_recipe_win_over_the_factorys(user_file: UserFile) -> None:
    model = source(user_file(TWO_HEADS), ranges={"batch": {"minimum": 2, "typical": 4, "maximum": 9}}).torch_model()
    assert model.ranges == {"batch": AxisRange(2, 4, 9)}


def build_with(**changes: str) -> str:
    fields = {
        "module": "nn.Linear(4, 2)",
        "inputs": "{'input': torch.ones(2, 4)}",
        "dynamic_axes": "{'input': {0: 'batch'}}",
    }
    entries = ", ".join(f"'{key}': {value}" for key, value in {**fields, **changes}.items() if value)
    return f"def build():\n    return {{{entries}}}\n"


WRONG = {
    "no dict": ("def build():\n    return 3\n", "must return a dict with module, inputs"),
    "an unknown key": (build_with(shapes="1"), "unknown key 'shapes'"),
    "no module": (build_with(module=""), "'module' must be a torch.nn.Module; got NoneType"),
    "a function as module": (build_with(module="len"), "must be a torch.nn.Module; got builtin"),
    "no inputs": (build_with(inputs="{}"), "'inputs' must be a dict"),
    "a number as input": (build_with(inputs="{'input': 3}"), "input 'input' must be a tensor; got int"),
    "an empty input": (build_with(inputs="{'input': torch.ones(0, 4)}"), "'input' is empty"),
    "NaN in an input": (build_with(inputs="{'input': torch.full((2, 4), float('nan'))}"), "holds NaN"),
    "an axis of no input": (build_with(dynamic_axes="{'x': {0: 'batch'}}"), "names 'x', no input"),
    "an axis too many": (build_with(dynamic_axes="{'input': {2: 'batch'}}"), "there is no axis 2; its shape is"),
    "an axis without a name": (build_with(dynamic_axes="{'input': {0: 1}}"), 'needs a name such as "batch"'),
    "a range of no axis": (build_with(ranges="{'tokens': (1, 2, 3)}"), "axis 'tokens', which no input has"),
    "a range backwards": (build_with(ranges="{'batch': (3, 2, 1)}"), "whole numbers in that order"),
    "outputs too many": (build_with(output_names="['a', 'b']"), r"has 2 \(a, b\), the module returns 1"),
    "a name twice": (build_with(output_names="['input']"), "'input' is the name of more than one input or output"),
    "inputs that do not fit": (
        build_with(inputs="{'input': torch.ones(2, 5)}"),
        "cannot run on its example inputs: RuntimeError: mat1 and mat2",
    ),
    "an exception": ("def build():\n    x = {}\n    return x['net']\n", r"KeyError: 'net' \(model.py:5\)"),
    "a syntax error": ("def build(:\n", r"SyntaxError.*\(model.py:3\)"),
    "an exit": ("def build():\n    raise SystemExit(3)\n", r"SystemExit: 3 \(model.py:4\)"),
    "no such function": ("def other():\n    pass\n", "no function 'build'.* It has: other"),
    "an argument missing": ("def build(size):\n    pass\n", "do not fit: missing a required argument: 'size'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_factory_is_refused_in_one_sentence(case: str, user_file: UserFile) -> None:
    body, sentence = WRONG[case]
    with pytest.raises(UsageError, match=sentence) as caught:
        source(user_file(body)).capture(ignore)
    assert "\n" not in str(caught.value)


def test_a_library_the_factory_needs_and_lacks_is_named(user_file: UserFile) -> None:
    with pytest.raises(BackendMissing, match="needs the library 'no_such_library_here'"):
        source(user_file("import no_such_library_here\n")).capture(ignore)


def test_check_and_files_run_no_user_code(user_file: UserFile) -> None:
    folder = user_file("raise RuntimeError('ran')\n")
    (folder / "weights.bin").write_bytes(b"1")
    assert source(folder).check() is None
    assert source(folder, files=("weights.bin",)).files() == (folder / "model.py", folder / "weights.bin")
    assert "no file 'gone.bin'" in (source(folder, files=("gone.bin",)).check() or "")
    assert "no file 'gone.py'" in (TorchSource(factory="gone.py:build", base=folder).check() or "")
    assert "names no function" in (TorchSource(factory="model.py", base=folder).check() or "")


def test_a_size_the_code_depends_on_is_an_error_that_names_axis_and_size(user_file: UserFile) -> None:
    body = """
class Net(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 2 else x

def build():
    return {"module": Net(), "inputs": {"x": torch.randn(2, 4)}, "dynamic_axes": {"x": {0: "batch"}},
            "ranges": {"batch": (1, 2, 6)}, "output_names": ["y"]}
"""
    with pytest.raises(StageFailed, match="output 'y' at batch=1 differs") as caught:
        source(user_file(body)).capture(ignore)
    assert "marked batch as dynamic but your code specialized it to be a constant (2)." in str(caught.value)


def test_a_range_that_the_original_cannot_take_is_the_users_error(user_file: UserFile) -> None:
    body = """
class Net(nn.Module):
    def forward(self, x):
        return x.reshape(2, 12) + 1

def build():
    return {"module": Net(), "inputs": {"x": torch.randn(2, 3, 4)}, "dynamic_axes": {"x": {0: "batch"}},
            "ranges": {"batch": (2, 4, 6)}}
"""
    with pytest.raises(UsageError, match=r"the original itself fails at batch=4: .*invalid for input of size 48"):
        source(user_file(body)).capture(ignore)


def test_an_older_exporter_takes_over_with_the_reason_why(user_file: UserFile) -> None:
    body = """
class Net(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum().item() > -1e9 else x

def build():
    return {"module": Net(), "inputs": {"x": torch.randn(2, 4)}, "dynamic_axes": {"x": {0: "batch"}},
            "output_names": ["y"]}
"""
    captured = source(user_file(body)).capture(ignore)
    assert captured.exporter.startswith("torch.onnx.export(dynamo=False)")
    failed = [note for note in captured.notes if note.startswith("Exporter failed")]
    assert len(failed) == 3
    assert all(note.startswith("Exporter failed: torch.onnx.export(dynamo=True)") for note in failed)
    assert sum("Could not guard on data-dependent expression" in note for note in failed) >= 2


def test_an_export_that_froze_a_value_is_found_by_comparing(user_file: UserFile) -> None:
    body = """
class Net(nn.Module):
    def forward(self, x):
        return x * float(x.detach().numpy().max())

def build():
    return {"module": Net(), "inputs": {"x": torch.randn(2, 4)}, "dynamic_axes": {"x": {0: "batch"}},
            "ranges": {"batch": (1, 2, 3)}, "output_names": ["y"]}
"""
    with pytest.raises(StageFailed, match="output 'y' at batch=1 differs from the original: relative L2"):
        source(user_file(body)).capture(ignore)


def test_an_example_outside_the_range_is_resized_and_a_range_of_one_size_is_taken(user_file: UserFile) -> None:
    body = build_with(ranges="{'batch': (4, 4, 4)}", output_names="['y']")
    captured = source(user_file(body)).capture(ignore)
    assert [check["shape"] for check in captured.checks] == [{"batch": 4}]
    assert captured.inputs[0].shape == ("batch", 4)


def test_nan_in_a_parameter_is_named(user_file: UserFile) -> None:
    body = """
def build():
    net = nn.Sequential(nn.Linear(4, 2))
    net[0].weight.data[1, 1] = float("nan")
    return {"module": net, "inputs": {"x": torch.ones(2, 4)}}
"""
    with pytest.raises(UsageError, match=r"the module: weight '0.weight' \(shape \[2, 4\]\) holds NaN \(1 among"):
        source(user_file(body)).capture(ignore)


def test_types_that_the_cpu_cannot_run_are_captured_with_a_note(user_file: UserFile) -> None:
    body = build_with(
        module="nn.Linear(4, 2).bfloat16()", inputs="{'input': torch.ones(2, 4, dtype=torch.bfloat16)}"
    )
    captured = source(user_file(body)).capture(ignore)
    assert captured.inputs[0].dtype == "bfloat16"
    assert not captured.checks
    assert any("was not compared with the original" in note for note in captured.notes)
