"""Embedding tables in INT8: one scale per row, exact zeros, refusals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.quantize.int8 import QuantizeInt8
from tests.support.runner import context, run

RNG = np.random.default_rng(1)


def lookup(table: np.ndarray, axis: int = 0) -> ir.Model:
    width = table.shape[1] if axis == 0 else table.shape[0]
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (int64[b, t] ids) => (float[b, t, '
        f"{width}] y) {{ [words] y = Gather <axis={axis}> (table, ids) }}"
    )
    value = model.graph[0].inputs[0]
    assert value is not None
    value.const_value = ir.tensor(table, name="table")
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(table.shape)
    model.graph.register_initializer(value)
    return model


def table(rows: int = 300) -> np.ndarray:
    # Rows of very different size: one scale for all would lose the small ones.
    return (RNG.normal(0, 1, (rows, 16)) * np.geomspace(0.01, 10, rows)[:, None]).astype(np.float32)


IDS = {"ids": np.arange(300).reshape(3, 100)}


def test_each_row_is_right_to_half_a_step_of_its_own_scale() -> None:
    words = table()
    words[7] = 0
    model = lookup(words)
    result = QuantizeInt8(embeddings=True).apply(model, context())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert Counter(node.op_type for node in model.graph) == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert {pattern.name: pattern.found for pattern in result.patterns} == {"layer": 0, "embedding": 1}
    assert "table" not in model.graph.initializers
    got = run(model, IDS)["y"].reshape(300, 16)
    step = np.abs(words).max(axis=1, keepdims=True) / 127
    # Half a step, and the last bit of float32 arithmetic.
    assert (np.abs(got - words) <= step * (0.5 + 2**-16)).all()
    assert not got[7].any()
    assert np.abs(got - words).max() > 0


def test_a_second_run_changes_nothing() -> None:
    model = lookup(table())
    QuantizeInt8(embeddings=True).apply(model, context())
    before = ir.to_onnx_text(model)
    assert QuantizeInt8(embeddings=True).apply(model, context()).rewrites == 0
    assert ir.to_onnx_text(model) == before


def test_tables_stay_as_they_are_unless_asked_for() -> None:
    model = lookup(table())
    assert QuantizeInt8().apply(model, context()).rewrites == 0


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (lambda: lookup(table(100)), {}, "the table has 100 rows, fewer than 256: not worth it"),
        (lambda: lookup(table(), axis=1), {}, "looks up columns, not rows"),
        (lambda: lookup(np.full((300, 16), np.inf, np.float32)), {}, "holds NaN or infinity"),
        (lambda: lookup(table()), {"skip": ("words",)}, "listed under skip"),
    ],
)
def test_a_table_that_is_left_alone_is_named_with_its_reason(make, options, reason) -> None:  # type: ignore[no-untyped-def]
    model = make()
    result = QuantizeInt8(embeddings=True, **options).apply(model, context())
    assert result.rewrites == 0
    assert [reason in item.reason for item in result.skips] == [True]
