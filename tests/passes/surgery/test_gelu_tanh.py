from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from passes.surgery.gelu_tanh import GeluTanh
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context, run
from tests.support.tensorrt_rtx.building import build

ENDS = ("float[B,S,8] x", "float[B,S,8] y")
EXACT = "h = Cast<to = 10>(x) g = Gelu(h) y = Cast<to = 1>(g)"
OPERATORS = {
    "sigmoid": {"Cast": 2, "Shape": 1, "Reshape": 2, "Mul": 4, "Add": 1, "Sigmoid": 1},
    "tanh": {"Cast": 2, "Shape": 1, "Reshape": 2, "Mul": 5, "Add": 2, "Tanh": 1},
    "operator": {"Cast": 2, "Gelu": 1},
}


@pytest.mark.parametrize("form", OPERATORS)
def test_an_exact_gelu_becomes_its_approximation(form: str) -> None:
    before, after = graph(EXACT, *ENDS), graph(EXACT, *ENDS)
    made = GeluTanh.model_validate({"form": form})
    assert made.apply(after, context(TENSORRT)).rewrites == 1
    assert operators(after) == OPERATORS[form]
    assert_same_outputs(after, before, tolerance=2e-3)
    assert made.apply(after, context(TENSORRT)).rewrites == 0


@pytest.mark.parametrize("form", OPERATORS)
def test_the_result_is_within_the_stated_error_of_the_exact_function(form: str) -> None:
    model = graph("y = Gelu(x)", "float16[N] x", "float16[N] y")
    GeluTanh.model_validate({"form": form}).apply(model, context(TENSORRT))
    x = np.linspace(-300, 300, 40001).astype(np.float16)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)])
    y = run(model, {"x": x})["y"].astype(float)
    assert np.isfinite(y).all()
    assert np.max(np.abs(y - exact) - 2.0**-9 * np.abs(exact)) <= 5e-4 + 2.0**-10


def test_an_approximate_gelu_is_spelt_out_when_a_form_is_asked_for() -> None:
    body = EXACT.replace("Gelu", 'Gelu<approximate = "tanh">')
    before, after = graph(body, *ENDS), graph(body, *ENDS)
    assert GeluTanh().apply(after, context(TENSORRT)).rewrites == 0
    assert GeluTanh(form="sigmoid").apply(after, context(TENSORRT)).rewrites == 1
    assert_same_outputs(after, before, tolerance=2e-3)


def test_a_gelu_in_32_bits_stays_with_the_reason() -> None:
    model = graph("y = Gelu(x)", "float[B,8] x", "float[B,8] y")
    result = GeluTanh().apply(model, context(TENSORRT))
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["its input is float, needs 16-bit floats"]


def test_the_other_users_of_what_a_gelu_reads_and_gives_survive() -> None:
    arguments = (f"{EXACT} z = Relu(g) a = Neg(h)", ENDS[0], f"{ENDS[1]}, float16[B,S,8] z, float16[B,S,8] a")
    before, after = graph(*arguments), graph(*arguments)
    assert GeluTanh(form="tanh").apply(after, context(TENSORRT)).rewrites == 1
    assert_same_outputs(after, before, tolerance=2e-3)


@pytest.mark.tensorrt
@pytest.mark.parametrize("form", OPERATORS)
def test_the_approximation_builds_for_tensorrt(tmp_path: Path, form: str) -> None:
    model = graph("h = MatMul(x, w) y = Gelu(h)", "float16[4,16,32] x, float16[32,64] w", "float16[4,16,64] y")
    assert GeluTanh.model_validate({"form": form}).apply(model, context(TENSORRT)).rewrites == 1
    layers = build(model, tmp_path).details["layers"]
    assert any("Tanh" in layer["name"] or "Sigm" in layer["name"] for layer in layers)
