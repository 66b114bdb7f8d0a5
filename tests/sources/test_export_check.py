"""The export check: it must see wrong sizes, swapped axes, small errors, NaN; and accept rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines.base import AxisRange, Session
from optimize.engines.onnxruntime_session import open_onnx
from optimize.errors import StageFailed, UsageError
from optimize.sources.axes import check_shapes, resized
from optimize.sources.export_check import check_export, difference

AXES = {"x": {0: "batch", 1: "tokens"}}
RANGES = {"batch": AxisRange(1, 2, 3), "tokens": AxisRange(2, 4, 5)}
EXAMPLE = {"x": np.random.default_rng(0).standard_normal((2, 4), np.float32)}


def graph(body: str) -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        agraph (float[batch, tokens] x) => (float[a, b] y) {{ {body} }}"""
    )


def session(model: ir.Model, folder: Path) -> Session:
    ir.save(model, folder / "original.onnx")
    return open_onnx(folder / "original.onnx", optimized=False)


def check(exported: str, folder: Path, original: str = "y = Abs(x)") -> tuple[object, ...]:
    return check_export(graph(exported), session(graph(original), folder), EXAMPLE, AXES, RANGES, lambda *_: None)


def test_every_axis_is_checked_at_its_ends() -> None:
    assert check_shapes(RANGES) == [
        {"batch": 1, "tokens": 2},
        {"batch": 2, "tokens": 4},
        {"batch": 3, "tokens": 2},
        {"batch": 1, "tokens": 5},
    ]
    assert check_shapes({}) == [{}]


def test_an_equal_graph_passes_at_every_shape(tmp_path: Path) -> None:
    assert len(check("y = Abs(x)", tmp_path)) == 4


def test_a_result_off_by_a_thousandth_fails(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"differs from the original: relative L2 0\.001"):
        check("a = Abs(x) k = Constant<value = float {1.001}>() y = Mul(a, k)", tmp_path)


def test_a_baked_size_fails_at_the_first_other_shape(tmp_path: Path) -> None:
    body = "a = Abs(x) shape = Constant<value_ints = [2, 4]>() y = Reshape(a, shape)"
    with pytest.raises(StageFailed, match="fails at batch=1, tokens=2, the original does not"):
        check(body, tmp_path)


def test_an_output_of_another_shape_fails(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"has shape \[2, 1\], the original's \[1, 2\]"):
        check("a = Abs(x) y = Transpose(a)", tmp_path)


def test_a_graph_that_cannot_load_is_the_exports_fault(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="ONNX Runtime refuses the exported model"):
        check("y = Mul(x, x, x)", tmp_path)


def test_an_original_that_cannot_run_at_a_shape_is_the_users_fault(tmp_path: Path) -> None:
    body = "a = Abs(x) shape = Constant<value_ints = [2, 4]>() y = Reshape(a, shape)"
    with pytest.raises(UsageError, match=r"the original itself fails at batch=1, tokens=2.*Narrow the axis ranges"):
        check("y = Abs(x)", tmp_path, original=body)


def test_nan_in_one_of_both_fails_and_in_both_passes() -> None:
    clean, broken = np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32)
    assert difference(broken, broken, "y") == (0.0, 0.0)
    with pytest.raises(StageFailed, match="NaN or infinities where the original has others"):
        difference(clean, broken, "y")
    with pytest.raises(StageFailed, match="NaN or infinities"):
        difference(np.array([np.inf]), np.array([-np.inf]), "y")


def test_whole_numbers_must_be_equal() -> None:
    assert difference(np.arange(3), np.arange(3), "y") == (0.0, 0.0)
    with pytest.raises(StageFailed):
        difference(np.arange(3), np.array([0, 1, 3]), "y")


def test_a_zero_output_that_becomes_something_fails() -> None:
    with pytest.raises(StageFailed):
        difference(np.zeros(3, np.float32), np.full(3, 0.1, np.float32), "y")


def test_resized_inputs_keep_to_the_examples_values_and_differ_by_row() -> None:
    rng = np.random.default_rng(0)
    tokens = resized(np.array([[3, 5, 7]]), {0: "batch", 1: "tokens"}, {"batch": 4, "tokens": 9}, rng)
    assert tokens.shape == (4, 9)
    assert set(tokens.ravel()) == {3, 5, 7}
    constant = resized(np.ones((1, 3), np.float32), {0: "batch"}, {"batch": 2}, rng)
    assert constant.shape == (2, 3)
    assert not np.array_equal(constant[0], constant[1])
