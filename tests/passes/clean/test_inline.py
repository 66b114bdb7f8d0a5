"""Local functions written out."""

from __future__ import annotations

import numpy as np
import pytest

from passes.base import PassFailed
from passes.clean.inline import Inline
from passes.names import NAME_SCOPES, module_of
from tests.support.runner import context

FUNCTION = (
    '<domain: "local", opset_import: ["" : 21]> f <k> (v) => (w) { u = Elu <alpha: float = @k> (v)  w = Neg(u) }'
)
X = np.float32([1, -2])


def test_calls_are_written_out_with_their_attributes(graph, cleaned, ops, found) -> None:
    model = graph(
        "g (float[2] x) => (float[2] y) { a = local.f <k = 0.5> (x)  y = local.f <k = 2.0> (a) }",
        functions=FUNCTION,
    )
    model.graph[0].metadata_props[NAME_SCOPES] = "['', 'encoder', 'f']"
    assert found(cleaned(Inline(), model, x=X)) == {"call": 2}
    assert ops(model) == {"Elu": 2, "Neg": 2}
    assert not model.functions
    assert "local" not in model.opset_imports
    assert module_of(model.graph[0]) == "encoder"


def test_an_operator_of_another_domain_is_left_alone(graph, ops) -> None:
    model = graph("g (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }")
    model.graph[0].domain = "vendor"
    model.opset_imports["vendor"] = 1
    assert Inline().apply(model, context()).rewrites == 0
    assert model.graph[0].domain == "vendor"


def test_calls_inside_a_branch_are_written_out_too(graph, cleaned, ops) -> None:
    model = graph(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If(c) <then_branch = t () => (float[2] b) { b = local.f <k = 0.5> (x) },
                       else_branch = e () => (float[2] d) { d = Abs(x) }>
        }""",
        functions=FUNCTION,
    )
    cleaned(Inline(), model, c=True, x=X)
    assert ops(model) == {"If": 1, "Elu": 1, "Neg": 1, "Abs": 1}


def test_functions_that_call_each_other_in_a_circle_are_refused(graph) -> None:
    model = graph("g (float[2] x) => (float[2] y) { y = local.f <k = 0.5> (x) }", functions=FUNCTION)
    (function,) = model.functions.values()
    function[1].domain, function[1].op_type = "local", "f"
    with pytest.raises(PassFailed, match="circle"):
        Inline().apply(model, context())
