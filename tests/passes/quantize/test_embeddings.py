"""quantize.embeddings: tables shrink, rows come back within half a step, everything else stays."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes import saving
from passes.base import PassContext
from passes.quantize.embeddings import QuantizeEmbeddings
from passes.target import Target
from tests.support.runner import run

CPU = Target(name="cpu", title="CPU", device="cpu", dialect="onnxruntime")
ROWS, WIDTH = 50, 16


def table(dtype: type = np.float32) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(dtype)
    values[0] = 0
    return values


def model(body: str = "y = Gather(t, ids)", values: np.ndarray | None = None, outputs: str = "") -> ir.Model:
    values = table() if values is None else values
    kind = {"float32": "float", "float16": "float16"}[str(values.dtype)]
    built = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (int64[n] ids, {kind}[{ROWS}, {WIDTH}] t) => ({kind}[n, {WIDTH}] y{outputs}) {{ {body} }}"""
    )
    weight = built.graph.inputs.pop()
    weight.const_value = ir.tensor(values, name="t")
    built.graph.register_initializer(weight)
    return built


def apply(built: ir.Model, **options: object) -> object:
    return QuantizeEmbeddings(**{"min_bytes": 0, **options}).apply(built, PassContext(target=CPU))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_come_back_within_half_a_step(dtype: type) -> None:
    values = table(dtype)
    built = model(values=values)
    assert apply(built).rewrites == 1
    ids = np.arange(ROWS)
    got = run(built, {"ids": ids})["y"].astype(np.float32)
    step = np.abs(values.astype(np.float32)).max(axis=1, keepdims=True) / 127
    rounding = 2**-10 if dtype is np.float16 else 1e-6  # fp16 keeps 11 significant bits
    assert (np.abs(got - values) <= step / 2 + np.abs(values) * rounding + rounding * step * 127).all()
    assert (got[0] == 0).all()
    assert not (got == values * 1.1).all()


def test_the_table_is_stored_in_a_quarter_of_the_bytes() -> None:
    built = model()
    apply(built)
    stored = {name: value.const_value.nbytes for name, value in built.graph.initializers.items()}
    assert sum(stored.values()) == ROWS * WIDTH + ROWS * 4
    assert [value.name for value in built.graph.outputs] == ["y"]


def test_a_second_run_changes_nothing() -> None:
    built = model()
    apply(built)
    before = [node.op_type for node in built.graph]
    assert apply(built).rewrites == 0
    assert [node.op_type for node in built.graph] == before


@pytest.mark.parametrize(
    ("body", "options", "reason"),
    [
        ("y = Gather(t, ids)", {"min_bytes": 10**6}, "fewer than min_bytes"),
        ("y = Gather(t, ids)", {"skip": ("Gather",)}, "named under skip"),
        ("y = Gather(t, ids) z = MatMul(y, t2) t2 = Transpose(t)", {}, "also read by Transpose"),
    ],
)
def test_what_it_leaves_alone_it_names(body: str, options: dict, reason: str) -> None:
    body = body.replace("z = MatMul(y, t2) t2 = Transpose(t)", "t2 = Transpose(t) z = MatMul(y, t2)")
    built = model(body, outputs=f", float[n, {ROWS}] z" if "z =" in body else "")
    result = apply(built, **options)
    assert result.rewrites == 0
    assert reason in result.skips[0].reason


def test_a_lookup_along_the_other_axis_is_no_embedding() -> None:
    built = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (int64[n] ids, float[{ROWS}, {WIDTH}] t) => (float[{ROWS}, n] y) {{ y = Gather <axis = 1> (t, ids) }}"""
    )
    weight = built.graph.inputs.pop()
    weight.const_value = ir.tensor(table(), name="t")
    built.graph.register_initializer(weight)
    result = apply(built)
    assert result.rewrites == 0


def test_a_table_with_nan_is_refused_by_name() -> None:
    values = table()
    values[3, 3] = np.nan
    result = apply(model(values=values))
    assert "'t' holds NaN" in result.skips[0].reason


def test_two_lookups_share_one_table() -> None:
    built = model("a = Gather(t, ids) b = Gather(t, ids) y = Add(a, b)")
    apply(built)
    assert sum(value.dtype == ir.DataType.INT8 for value in built.graph.initializers.values()) == 1


def test_tensorrt_is_told_that_nothing_is_gained() -> None:
    target = Target(name="h200", title="H200", device="cuda", dialect="tensorrt")
    assert "folds the table back" in (QuantizeEmbeddings().check(target) or "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_mapped_table_is_let_go_after_the_pass_and_after_saving(tmp_path: Path) -> None:
    saving.save(model(), tmp_path / "in.onnx", inline_bytes=0)
    mapped = ir.load(tmp_path / "in.onnx")
    assert apply(mapped).rewrites == 1
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    saving.save(mapped, tmp_path / "out.onnx", inline_bytes=0)
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
