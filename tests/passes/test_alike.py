from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from passes.alike import alike
from passes.base import Arrays
from passes.cut import cut
from passes.draft import Draft
from passes.rewriting import Rewriting, rewrite
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import context, run

WEIGHTS = "float[4,4] w = {%s}, float[4,4] v = {%s}, float two = {2}, float three = {3}, float[1,4] row = {1,2,3,4}"
WEIGHTS %= ", ".join("1" * 16), ", ".join(map(str, range(16)))
LAYERS = "p = MatMul(x, w) a = Mul(p, {first}) q = MatMul(a, v) y = Mul(q, {second})"


def drafts_of(model: ir.Model, own: bool = False) -> list[Draft]:
    """Every Mul drafted as a Mul with its inputs swapped; `own` adds a large constant made by the draft."""
    rewriting = Rewriting(model, context(), "swap")
    found = []
    for node in rewriting.nodes("Mul"):
        draft = rewriting.draft("swap", node)
        number = draft.constant(np.ones((9, 1, 1, 9), np.float32), "made") if own else node.inputs[1]
        draft.replace(node.outputs[0], draft.op("Mul", [number, node.inputs[0]]))
        found.append(draft)
    return found


def groups(body: str, inputs: str = "float[B,4] x", own: bool = False) -> tuple[tuple[int, ...], ...]:
    model = graph(body, inputs, "float[B,4] y", WEIGHTS)
    drafts = drafts_of(model, own)
    return alike(model, drafts, [cut(draft) for draft in drafts])


def test_layers_that_differ_in_the_layer_before_them_are_alike() -> None:
    assert groups(LAYERS.format(first="two", second="two")) == ((0, 1),)


@pytest.mark.parametrize(("size", "expected"), [(64, ((0,), (1,))), (65, ((0, 1),))])
def test_only_large_weights_may_differ_in_their_numbers(size: int, expected: tuple[tuple[int, ...], ...]) -> None:
    rows = [", ".join(str(number) for number in range(start, start + size)) for start in (0, 1)]
    weights = f"float[{size}] r = {{{rows[0]}}}, float[{size}] s = {{{rows[1]}}}"
    model = graph(
        "p = Softmax(x) q = MatMul(p, p) a = Mul(q, r) b = MatMul(a, a) y = Mul(b, s)",
        f"float[{size},{size}] x",
        f"float[{size},{size}] y",
        weights,
    )
    drafts = drafts_of(model)
    assert alike(model, drafts, [cut(draft) for draft in drafts]) == expected


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (LAYERS.format(first="two", second="three"), "float[B,4] x"),
        (LAYERS.format(first="two", second="row"), "float[B,4] x"),
        ("p = MatMul(x, w) a = Mul(p, m) q = MatMul(a, v) n = Neg(m) y = Mul(q, n)", "float[B,4] x, float[B,4] m"),
        ("p = MatMul(x, w) a = Mul(p, two) q = MatMul(a, r) y = Mul(q, two)", "float[B,4] x, float[4,C] r"),
    ],
    ids=["another number", "another shape", "another mask", "another size"],
)
def test_layers_that_differ_in_anything_else_are_not_alike(body: str, inputs: str) -> None:
    assert groups(body, inputs) == ((0,), (1,))


def test_a_draft_that_computed_a_large_constant_is_alike_to_none() -> None:
    assert groups(LAYERS.format(first="two", second="two"), own=True) == ((0,), (1,))


def chain(layers: int) -> ir.Model:
    steps = [f"p{n} = MatMul(h{n}, w) h{n + 1} = Add(p{n}, p{n})" for n in range(layers)]
    body = " ".join(steps).replace("h0", "x").replace(f"h{layers} ", "y ")
    return graph(body, "float[B,4] x", "float[B,4] y", WEIGHTS.replace("1, 1", "0.3, 0.2"))


def double(model: ir.Model, factors: Sequence[float], counted: list[int]) -> int:
    """Write Add(p, p) as p * factor, one factor per layer; the nodes that were run go into `counted`."""

    def counting(part: ir.Model, feeds: Arrays, outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
        counted.append(len(part.graph))
        return run(part, feeds, outputs)

    def match(rewriting: Rewriting) -> None:
        for add, factor in zip(rewriting.nodes("Add"), factors, strict=True):
            draft = rewriting.draft("double", add)
            number = draft.constant(np.float32(factor), "factor")
            draft.replace(add.outputs[0], draft.op("Mul", [add.inputs[0], number]))
            rewriting.propose(draft)

    return rewrite(model, context(run=counting), ("double",), match).rewrites


def test_checking_equal_layers_runs_no_more_nodes_however_many_they_are() -> None:
    counts: dict[int, list[int]] = {3: [], 60: []}
    for layers, counted in counts.items():
        before, after = chain(layers), chain(layers)
        assert double(after, [2.0] * layers, counted) == layers
        assert operators(after)["Mul"] == layers
        assert_same_outputs(after, before)
    assert sum(counts[60]) <= sum(counts[3])


def test_a_wrong_rewrite_among_many_right_ones_is_found_wherever_it_stands() -> None:
    for place in range(5):
        model = chain(5)
        factors = [2.5 if layer == place else 2.0 for layer in range(5)]
        assert double(model, factors, []) == 4
        assert operators(model) == {"MatMul": 5, "Mul": 4, "Add": 1}


def test_when_alike_rewrites_are_wrong_all_are_rolled_back() -> None:
    model = chain(5)
    assert double(model, [2.5] * 5, []) == 0
    assert operators(model) == {"MatMul": 5, "Add": 5}
