from __future__ import annotations

import pytest

from passes.fuse.rotary import FuseRotary
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context

WEIGHTS = (
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] half = {4}, int64[1] end = {9223372036854775807},"
    " int64[1] last = {3}, float scale = {1.5}"
)
TABLES = (
    "e = Concat<axis=-1>(angles, angles) c3 = Cos(e) s3 = Sin(e) {} c = Unsqueeze(c4, one) s = Unsqueeze(s4, one) "
)
PLAIN = TABLES.format("c4 = Identity(c3) s4 = Identity(s3)")
SLICES = (
    "a = Slice(x, zero, half, last, one) b = Slice(x, half, end, last, one) n = Neg(b) r = Concat<axis=-1>(n, a) "
)
SPLIT = "a, b = Split<axis=-1, num_outputs=2>(x) n = Neg(b) r = Concat<axis=3>(n, a) "
SUM = "xc = Mul(x, c) rs = Mul(r, s) y = Add(xc, rs)"
SPELLINGS = {
    "Slices": (PLAIN + SLICES + SUM, "float[1,S,4] angles"),
    "Split": (PLAIN + SPLIT + SUM, "float[1,S,4] angles"),
    "angles per row": (PLAIN + SLICES + SUM, "float[B,S,4] angles"),
    "scaled tables": (
        TABLES.format("c4 = Mul(c3, scale) s4 = Mul(scale, s3)") + SLICES + SUM,
        "float[1,S,4] angles",
    ),
    "other order": (PLAIN + SLICES + "xc = Mul(c, x) rs = Mul(s, r) y = Add(rs, xc)", "float[B,S,4] angles"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_one_operator_with_equal_outputs(spelling: str) -> None:
    body, angles = SPELLINGS[spelling]
    before, after = (graph(body, f"float[B,2,S,8] x, {angles}", "float[B,2,S,8] y", WEIGHTS) for _ in range(2))
    result = FuseRotary().apply(after, context())
    assert (result.rewrites, result.notes) == (1, ())
    assert operators(after)["RotaryEmbedding"] == 1
    assert not {"Neg", "Slice", "Split", "Add"} & set(operators(after))
    assert_same_outputs(after, before)
    assert FuseRotary().apply(after, context()).rewrites == 0


def test_tables_with_unequal_halves_are_left_alone_with_the_reason() -> None:
    body = PLAIN.replace("(angles, angles)", "(angles, others)") + SLICES + SUM
    model = graph(body, "float[B,2,S,8] x, float[1,S,4] angles, float[1,S,4] others", "float[B,2,S,8] y", WEIGHTS)
    result = FuseRotary().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == [
        "the two halves of the cosine are not surely equal"
    ]


def test_the_first_half_negated_is_another_turn_and_left_alone() -> None:
    body = PLAIN + SLICES.replace("Neg(b)", "Neg(a)").replace("(n, a)", "(b, n)") + SUM
    model = graph(body, "float[B,2,S,8] x, float[1,S,4] angles", "float[B,2,S,8] y", WEIGHTS)
    assert FuseRotary().apply(model, context()).rewrites == 0


def test_a_turned_half_that_is_a_graph_output_stays() -> None:
    body, angles = SPELLINGS["Slices"]
    model = graph(body, f"float[B,2,S,8] x, {angles}", "float[B,2,S,8] y, float[B,2,S,8] r", WEIGHTS)
    assert FuseRotary().apply(model, context()).rewrites == 0
