from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes.base import PassResult
from passes.rewriting import Rewriting, rewrite
from passes.verify import difference
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

DOUBLE = ("a = Add(x, x) y = Relu(a)", "float[B,S] x", "float[B,S] y")


def doubling(factor: float, model: ir.Model, **fields: object) -> PassResult:
    """A pass that writes Add(x, x) as x * factor."""

    def match(rewriting: Rewriting) -> None:
        for add in rewriting.nodes("Add"):
            draft = rewriting.draft("double", add)
            number = draft.constant(np.float32(factor), "factor")
            draft.replace(add.outputs[0], draft.op("Mul", [add.inputs[0], number]))
            rewriting.propose(draft)

    return rewrite(model, context(**fields), ("double",), match)  # type: ignore[arg-type]


def test_a_right_rewrite_is_kept() -> None:
    before, after = graph(*DOUBLE), graph(*DOUBLE)
    assert doubling(2.0, after).rewrites == 1
    assert operators(after) == {"Mul": 1, "Relu": 1}
    assert_same_outputs(after, before)


@pytest.mark.parametrize("factor", [2.2, 1.999, -2.0])
def test_a_wrong_rewrite_is_rolled_back_and_leaves_no_trace(factor: float) -> None:
    model = graph(*DOUBLE)
    result = doubling(factor, model)
    assert result.rewrites == 0
    assert "differs by" in result.patterns[0].near_misses[0].reason
    assert "was rolled back" in result.notes[0]
    assert operators(model) == {"Add": 1, "Relu": 1}
    assert not model.graph.initializers
    assert all(len(value.uses()) in (1, 2) for value in model.graph.inputs)


def test_one_wrong_rewrite_does_not_take_the_right_ones_with_it() -> None:
    body = "a = Add(x, x) b = Add(z, w) c = Add(a, b) y = Relu(c)"
    model = graph(body, "float[B,S] x, float[B,S] z, float[B,S] w", "float[B,S] y")
    result = doubling(2.0, model)
    assert result.rewrites == 1
    assert len(result.patterns[0].near_misses) == 2


def test_a_rewrite_that_the_engine_refuses_is_rolled_back_with_its_words() -> None:
    model = graph(*DOUBLE)

    def match(rewriting: Rewriting) -> None:
        add = rewriting.nodes("Add")[0]
        draft = rewriting.draft("odd", add)
        draft.replace(add.outputs[0], draft.op("NoSuchOperator", [add.inputs[0]], domain="com.microsoft"))
        rewriting.propose(draft)

    result = rewrite(model, context(), ("odd",), match)
    assert result.rewrites == 0
    assert "NoSuchOperator" in result.notes[0]
    assert operators(model) == {"Add": 1, "Relu": 1}


def test_without_an_engine_the_rewrite_is_kept_and_the_missing_check_is_said() -> None:
    model = graph(*DOUBLE)
    result = doubling(2.0, model, run=None)
    assert result.rewrites == 1
    assert "Not checked numerically" in result.notes[0]


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (np.float32([1.1, 2.2, 3.3]), "differs by"),
        (np.float32([2, 1, 3]), "differs by"),
        (np.float32([1, 2, np.nan]), "gives NaN"),
        (np.float32([1, 2, np.inf]), "infinities differ"),
        (np.float32([[1, 2, 3]]), "shape is [1, 3], was [3]"),
        (np.float64([1, 2, 3]), "type is float64, was float32"),
    ],
)
def test_a_difference_is_named(new: np.ndarray, words: str) -> None:  # type: ignore[type-arg]
    assert words in (difference(np.float32([1, 2, 3]), new) or "")


def test_rounding_is_no_difference() -> None:
    old = np.float32([1, 2, 3])
    assert difference(old, np.nextafter(old, np.float32(9))) is None


class SixAtATime:
    """Calibration data for a graph that takes six numbers only."""

    samples = 6

    def feeds(self):  # type: ignore[no-untyped-def]
        yield {"x": np.linspace(-1, 1, 6, dtype=np.float32)}

    def observe(self, model, values):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.mark.parametrize(("factor", "found"), [(2.0, 1), (2.2, 0)])
def test_where_made_up_inputs_do_not_run_a_real_batch_is_taken(factor: float, found: int) -> None:
    model = graph(
        "r = Reshape(x, six) a = Add(r, r) y = Relu(a)", "float[B] x", "float[2,3] y", "int64[2] six = {2, 3}"
    )
    assert doubling(factor, model, calibration=SixAtATime()).rewrites == found


def test_where_no_input_runs_the_missing_check_is_said() -> None:
    model = graph(
        "r = Reshape(x, six) a = Add(r, r) y = Relu(a)", "float[B] x", "float[2,3] y", "int64[2] six = {2, 3}"
    )
    result = doubling(2.0, model)
    assert "no trial input runs" in result.notes[0]
