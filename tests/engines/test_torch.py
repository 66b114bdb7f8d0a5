"""The PyTorch baseline, on real modules."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from optimize.engines.base import TensorSpec
from optimize.engines.torch import TorchOptions, TorchSession
from optimize.errors import StageFailed, UsageError

torch = pytest.importorskip("torch")

X = TensorSpec("x", "float32", ("n", 4))


class TwoOutputs(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x):  # type: ignore[no-untyped-def]
        return {"sum": x.sum(-1), "nothing": None, "parts": (x * 2, x.to(torch.bfloat16))}


def test_nested_outputs_are_flattened_in_order_with_their_types() -> None:
    names = (
        TensorSpec("sum", "float32", ("n",)),
        TensorSpec("double", "float32", ("n", 4)),
        TensorSpec("half", "bfloat16", ("n", 4)),
    )
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with TorchSession(TwoOutputs(), [X], names) as session:
        got = session.run({"x": x})
    np.testing.assert_array_equal(got["sum"], x.sum(-1))
    np.testing.assert_array_equal(got["double"], x * 2)
    assert got["half"].dtype == ml_dtypes.bfloat16


def test_a_module_with_other_outputs_than_declared_is_refused() -> None:
    session = TorchSession(TwoOutputs(), [X], [TensorSpec("y", "float32", ("n",))])
    with pytest.raises(StageFailed, match="gave 3 outputs, 1 are declared"):
        session.run({"x": np.zeros((1, 4), np.float32)})


def test_dropout_is_off_and_read_only_inputs_are_taken() -> None:
    session = TorchSession(torch.nn.Dropout(0.5), [X], [TensorSpec("y", "float32", ("n", 4))])
    x = np.ones((64, 4), np.float32)
    x.flags.writeable = False
    np.testing.assert_array_equal(session.run({"x": x})["y"], x)


def test_a_failing_module_is_one_line_with_its_reason() -> None:
    session = TorchSession(torch.nn.Linear(3, 3), [X], [TensorSpec("y", "float32", ("n", 3))])
    with pytest.raises(StageFailed, match=r"the module failed with RuntimeError: mat1 and mat2"):
        session.run({"x": np.zeros((1, 4), np.float32)})


def test_a_wrong_dtype_is_refused_before_running() -> None:
    session = TorchSession(torch.nn.Identity(), [X], [X])
    with pytest.raises(UsageError, match="expected float32, got float64"):
        session.prepare({"x": np.zeros((1, 4))})


def test_the_prepared_call_runs_the_module() -> None:
    calls = []

    class Counting(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x):  # type: ignore[no-untyped-def]
            calls.append(1)
            return x

    prepared = TorchSession(Counting(), [X], [X], TorchOptions(threads=1)).prepare(
        {"x": np.zeros((1, 4), np.float32)}
    )
    before = len(calls)
    prepared()
    assert len(calls) == before + 1
