"""A newer opset."""

from __future__ import annotations

import numpy as np

from passes.clean.opset import RaiseOpset
from tests.support.runner import CPU

X = np.float32([[1, -2, 3]])
MODEL = "g (float[n, 3] x) => (float[n, 3] y) { a = Softmax(x)  y = Neg(a) }"


def test_an_older_model_comes_out_at_the_version(graph, cleaned) -> None:
    model = graph(MODEL, opset=18)
    result = cleaned(RaiseOpset(least=21), model, x=X)
    assert model.opset_imports[""] == 21
    assert result.figures == {"opset before": 18, "opset after": 21}


def test_operators_that_changed_are_rewritten(graph, cleaned) -> None:
    model = graph(
        """g (float[1, 1, 4, 4] x, float[1, 2, 2, 2] at) => (float[1, 1, 2, 2] y) {
            y = GridSample <mode = "bilinear"> (x, at)
        }""",
        opset=19,
    )
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    cleaned(RaiseOpset(least=20), model, x=image, at=np.full((1, 2, 2, 2), 0.3, np.float32))
    assert model.graph[0].attributes["mode"].as_string() == "linear"


def test_a_newer_model_is_left_alone(graph, cleaned) -> None:
    model = graph(MODEL, opset=21)
    assert cleaned(RaiseOpset(least=20), model, x=X).rewrites == 0
    assert model.opset_imports[""] == 21


def test_a_version_the_engine_cannot_read_is_refused_beforehand() -> None:
    old = CPU.model_copy(update={"opset": 20})
    assert RaiseOpset(least=21).check(old) == "opset 21 is beyond what CPU reads; use at most 20"
    assert RaiseOpset(least=20).check(old) is None


def test_branches_are_converted_too(graph, cleaned) -> None:
    model = graph(
        """g (bool c, float[n, 3] x) => (float[n, 3] y) {
            y = If(c) <then_branch = t () => (float[n, 3] b) { b = Softmax(x) },
                       else_branch = e () => (float[n, 3] d) { d = Abs(x) }>
        }""",
        opset=18,
    )
    cleaned(RaiseOpset(least=21), model, c=True, x=X)
