from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from passes.fuse.group_norm import FuseGroupNorm
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import CPU, TENSORRT, context

WEIGHTS = (
    "int64[3] groups = {0, 2, -1}, float[2] ones = {1, 1}, float[2] zeros = {0, 0}, float[2] own = {1, 2},"
    " float[4,1,1] w = {1, 2, 3, 4}, float[1,4,1,1] b = {0.5, -1, 2, 0}, int64[4] still = {0, 4, 6, 5},"
    " int64[4] turned = {0, 4, 5, 6}, float[5] columns = {1, 2, 3, 4, 5}"
)
CORE = "g = Reshape(x, groups) n = InstanceNormalization<epsilon=0.001>(g, ones, zeros) "
SHAPE = "s = Shape(x) r = Reshape(n, s) "
SPELLINGS = {
    "as torch exports it": (CORE + SHAPE + "a = Mul(r, w) y = Add(a, b)", "float[B,4,S,T]"),
    "factors in front": (CORE + SHAPE + "a = Mul(w, r) y = Add(b, a)", "float[B,4,S,T]"),
    "no scale and no bias": (CORE + "s = Shape(x) y = Reshape(n, s)", "float[B,4,S,T]"),
    "a constant target": (CORE + "r = Reshape(n, still) a = Mul(r, w) y = Add(a, b)", "float[B,4,6,5]"),
    "a factor of another axis stays": (CORE + SHAPE + "y = Mul(r, columns)", "float[B,4,S,5]"),
}


def build(spelling: str) -> ir.Model:
    body, shape = SPELLINGS[spelling]
    return graph(body, f"{shape} x", f"{shape} y", WEIGHTS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_one_operator_with_equal_outputs(spelling: str) -> None:
    before, after = build(spelling), build(spelling)
    result = FuseGroupNorm().apply(after, context(TENSORRT))
    assert (result.rewrites, result.notes) == (1, ())
    assert operators(after)["GroupNormalization"] == 1
    assert not {"InstanceNormalization", "Reshape", "Add"} & set(operators(after))
    assert_same_outputs(after, before)
    assert FuseGroupNorm().apply(after, context(TENSORRT)).rewrites == 0


LOOK_ALIKES = {
    "the instance norm has scales of its own, needs ones and zeros": (
        CORE.replace("ones", "own") + SHAPE + "a = Mul(r, w) y = Add(a, b)",
        ("float[B,4,S,T]", "float[B,4,S,T]"),
    ),
    "the output does not surely have the shape of the input": (
        CORE + "r = Reshape(n, turned) a = Mul(r, w) y = Add(a, b)",
        ("float[B,4,6,5]", "float[B,4,5,6]"),
    ),
    "None channels in 2 groups, needs known numbers that divide": (
        CORE + "s = Shape(x) y = Reshape(n, s)",
        ("float[B,N,S,T]", "float[B,N,S,T]"),
    ),
}


@pytest.mark.parametrize("reason", LOOK_ALIKES)
def test_a_look_alike_is_left_alone_with_the_reason(reason: str) -> None:
    body, (inside, outside) = LOOK_ALIKES[reason]
    model = graph(body, f"{inside} x", f"{outside} y", WEIGHTS)
    before = operators(model)
    result = FuseGroupNorm().apply(model, context(TENSORRT))
    assert [miss.reason for miss in result.patterns[0].near_misses] == [reason]
    assert operators(model) == before


def test_a_normalized_value_that_is_a_graph_output_stays() -> None:
    body, shape = SPELLINGS["as torch exports it"]
    model = graph(body, f"{shape} x", f"{shape} y, float[B,2,M] n", WEIGHTS)
    assert FuseGroupNorm().apply(model, context(TENSORRT)).rewrites == 0
    assert operators(model)["InstanceNormalization"] == 1


def test_a_scaled_value_that_is_read_elsewhere_keeps_its_name_and_numbers() -> None:
    body, shape = SPELLINGS["as torch exports it"]
    outputs = f"{shape} y, {shape} a"
    before, after = (graph(body, f"{shape} x", outputs, WEIGHTS) for _ in range(2))
    assert FuseGroupNorm().apply(after, context(TENSORRT)).rewrites == 1
    assert operators(after)["Add"] == 1
    assert_same_outputs(after, before)


def test_onnx_runtime_keeps_the_plain_form_and_the_note_says_why() -> None:
    model = build("as torch exports it")
    result = FuseGroupNorm().apply(model, context(CPU))
    assert result.rewrites == 0
    assert "faster in the plain form" in result.notes[0]


@pytest.mark.slow
@pytest.mark.tensorrt
def test_tensorrt_builds_it(tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build as engine

    model = build("as torch exports it")
    FuseGroupNorm().apply(model, context(TENSORRT))
    layers = engine(model, tmp_path).details["layers"]
    assert any("normalization" in str(layer).lower() for layer in layers)
