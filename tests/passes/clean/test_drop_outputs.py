"""Outputs dropped on request."""

from __future__ import annotations

import pydantic
import pytest

from passes.base import PassFailed
from passes.clean.drop_outputs import DropOutputs
from tests.support.runner import context

MODEL = "g (float[2] x) => (float[2] y, float[2] hidden) <float[2] p = {1, 2}> { hidden = Mul(x, p)  y = Neg(x) }"


@pytest.mark.parametrize("name", ["hidden", "hid*"])
def test_a_named_output_goes_with_all_that_only_it_needed(name: str, graph, ops) -> None:
    model = graph(MODEL)
    pass_ = DropOutputs(names=(name,))
    assert pass_.apply(model, context()).rewrites == 1
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert (ops(model), len(model.graph.initializers)) == ({"Neg": 1}, 0)
    assert pass_.apply(model, context()).rewrites == 0


def test_other_outputs_and_all_inputs_stay(graph, cleaned) -> None:
    model = graph(MODEL)
    assert cleaned(DropOutputs(names=("other",)), model).rewrites == 0


def test_a_value_that_another_output_needs_lives_on(graph, ops) -> None:
    model = graph("g (float[2] x) => (float[2] y, float[2] hidden) { hidden = Abs(x)  y = Neg(hidden) }")
    DropOutputs(names=("hidden",)).apply(model, context())
    assert ops(model) == {"Abs": 1, "Neg": 1}


def test_the_last_output_cannot_be_dropped(graph) -> None:
    with pytest.raises(PassFailed, match="no output would be left of y, hidden"):
        DropOutputs(names=("*",)).apply(graph(MODEL), context())


def test_it_never_runs_without_being_told_what(graph) -> None:
    with pytest.raises(pydantic.ValidationError):
        DropOutputs()  # type: ignore[call-arg]
