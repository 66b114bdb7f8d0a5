from __future__ import annotations

from pathlib import Path

import pytest

from passes.fuse.rotary import FuseRotary
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context

WEIGHTS = (
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] half = {4}, int64[1] end = {9223372036854775807},"
    " int64[1] last = {3}, float scale = {1.5}, int64[1] two = {2}, int64[1] behind = {-1}, int64 first = {0},"
    " int64 other = {1}, int64[4] repeat = {1, 1, 1, 2}, int64[3] table = {0, 0, 8}, int64[4] whole = {0, 0, 0, 8},"
    " int64[5] pairs = {0, 0, 0, 4, 2}"
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
REPEATED = (
    "c3 = Cos(angles) s3 = Sin(angles) cu = Unsqueeze(c3, behind) su = Unsqueeze(s3, behind)"
    " ce = Expand(cu, repeat) se = Expand(su, repeat) c4 = Reshape(ce, table) s4 = Reshape(se, table)"
    " c = Unsqueeze(c4, one) s = Unsqueeze(s4, one) "
)
REPEATED_ANGLES = (
    "u = Unsqueeze(angles, behind) e = Expand(u, repeat) t = Reshape(e, table) c3 = Cos(t) s3 = Sin(t)"
    " c = Unsqueeze(c3, one) s = Unsqueeze(s3, one) "
)
SINGLE = "c3 = Cos(angles) s3 = Sin(angles) c = Unsqueeze(c3, one) s = Unsqueeze(s3, one) "
EVERY_SECOND = "a = Slice(x, zero, end, last, two) b = Slice(x, one, end, last, two) "
NEIGHBOURS = (
    EVERY_SECOND + "n = Neg(b) nu = Unsqueeze(n, behind) au = Unsqueeze(a, behind) k = Concat<axis=-1>(nu, au)"
    " r = Reshape(k, whole) "
)
PAIRS = (
    "v = Reshape(x, pairs) a5 = Slice(v, zero, one, behind) b5 = Slice(v, one, two, behind) a = Squeeze(a5, behind)"
    " b = Squeeze(b5, behind) "
)
GATHERED = "v = Reshape(x, pairs) a = Gather<axis=-1>(v, first) b = Gather<axis=4>(v, other) "
TURN = "ac = Mul(a, c) bs = Mul(b, s) left = Sub(ac, bs) bc = Mul(b, c) as = Mul(s, a) right = Add(bc, as) "
STACK = (
    "lu = Unsqueeze(left, behind) ru = Unsqueeze(right, behind) k = Concat<axis=-1>(lu, ru) y = Reshape(k, whole)"
)
JOIN = "y = Concat<axis=-1>(left, right)"
SPELLINGS = {
    "halves turned one by one": (
        SINGLE + SLICES + TURN + JOIN,
        "float[B,S,4] angles",
    ),
    "neighbours, tables repeated": (REPEATED + NEIGHBOURS + SUM, "float[B,S,4] angles"),
    "neighbours, angles repeated": (REPEATED_ANGLES + NEIGHBOURS + SUM, "float[1,S,4] angles"),
    "neighbours turned one by one": (SINGLE + EVERY_SECOND + TURN + STACK, "float[B,S,4] angles"),
    "neighbours out of pairs": (SINGLE + PAIRS + TURN + STACK, "float[1,S,4] angles"),
    "neighbours gathered": (SINGLE + GATHERED + TURN + STACK, "float[B,S,4] angles"),
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


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name.startswith("neighbours")])
def test_neighbours_as_pairs_are_written_as_interleaved(spelling: str) -> None:
    body, angles = SPELLINGS[spelling]
    model = graph(body, f"float[B,2,S,8] x, {angles}", "float[B,2,S,8] y", WEIGHTS)
    FuseRotary().apply(model, context())
    (rotary,) = (node for node in model.graph if node.op_type == "RotaryEmbedding")
    assert rotary.attributes.get_int("interleaved", 0) == 1


@pytest.mark.parametrize(
    "body",
    [
        SINGLE + EVERY_SECOND + TURN + JOIN,  # neighbours in, halves out
        SINGLE + EVERY_SECOND + TURN.replace("Mul(s, a)", "Mul(s, b)") + STACK,  # one element turned into itself
        SINGLE + EVERY_SECOND + TURN.replace("Mul(b, c)", "Mul(b, s)") + STACK,  # sines only
        SINGLE + EVERY_SECOND + TURN.replace("Sub(ac, bs)", "Sub(bs, ac)") + STACK,  # mirrored
    ],
)
def test_other_combinations_of_pairs_are_left_alone(body: str) -> None:
    model = graph(body, "float[B,2,S,8] x, float[B,S,4] angles", "float[B,2,S,8] y", WEIGHTS)
    before = operators(model)
    assert FuseRotary().apply(model, context()).rewrites == 0
    assert operators(model) == before


def test_repeated_tables_around_halves_are_left_alone_with_the_reason() -> None:
    model = graph(REPEATED + SLICES + SUM, "float[B,2,S,8] x, float[B,S,4] angles", "float[B,2,S,8] y", WEIGHTS)
    result = FuseRotary().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == [
        "the two halves of the cosine are not surely equal"
    ]


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


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("spelling", ["halves turned one by one", "neighbours turned one by one"])
def test_tensorrt_builds_it(spelling: str, tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    body, angles = SPELLINGS[spelling]
    model = graph(body, f"float[B,2,S,8] x, {angles}", "float[B,2,S,8] y", WEIGHTS)
    assert FuseRotary().apply(model, context(TENSORRT)).rewrites == 1
    assert build(model, tmp_path).path.stat().st_size > 0
