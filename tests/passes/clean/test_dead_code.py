"""What nothing uses."""

from __future__ import annotations

import numpy as np

from passes.clean.dead_code import DeadCode
from tests.support.runner import context

X = np.float32([[1, -2, 3]])


def test_nodes_weights_functions_and_opsets_that_nothing_uses_go(graph, cleaned, ops, found) -> None:
    model = graph(
        """g (float[n, 3] x) => (float[n, 3] y) <float[3] p = {1, 2, 3}, float[3] q = {1, 2, 3}> {
            a = Mul(x, p)
            b = local.f(a)
            y = Neg(x)
        }""",
        functions='<domain: "local", opset_import: ["" : 21]> f (v) => (w) { w = Relu(v) }',
    )
    result = cleaned(DeadCode(), model, x=X)
    assert found(result)["weight"] == 2
    assert found(result)["function"] == 1
    assert ops(model) == {"Neg": 1}
    assert (len(model.graph.initializers), len(model.functions), list(model.opset_imports)) == (0, 0, [""])


def test_unused_inputs_stay_because_they_belong_to_the_user(graph, cleaned) -> None:
    model = graph("g (float[n, 3] x, float[2] unused) => (float[n, 3] y) { y = Neg(x) }")
    cleaned(DeadCode(), model, x=X, unused=np.float32([1, 2]))
    assert [value.name for value in model.graph.inputs] == ["x", "unused"]


def test_a_weight_that_is_an_output_stays(graph, cleaned) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y, float[2] w) <float[2] w = {1, 2}> { y = Neg(x) }")
    assert cleaned(DeadCode(), model).rewrites == 0
    assert "w" in model.graph.initializers


def test_what_only_a_branch_uses_is_used(graph, cleaned, ops) -> None:
    model = graph("""g (bool c, float[n, 3] x) => (float[n, 3] y) <float[3] p = {1, 2, 3}> {
        a = Mul(x, p)
        y = If(c) <then_branch = t () => (float[n, 3] b) <float[2] v = {1, 2}> { s = Abs(a)  b = Neg(a) },
                   else_branch = e () => (float[n, 3] d) { d = Abs(x) }>
    }""")
    cleaned(DeadCode(), model, c=True, x=X)
    assert ops(model) == {"Mul": 1, "If": 1, "Neg": 1, "Abs": 1}
    (branch, _) = model.graph.subgraphs()
    assert not branch.initializers


def test_an_output_nobody_reads_goes_and_the_node_stays(graph, cleaned) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y) { a, mask = Dropout(x)  y = Neg(a) }")
    cleaned(DeadCode(), model, x=X)
    assert len(model.graph[0].outputs) == 1


def test_large_weights_are_not_read(graph, lazy) -> None:
    model = graph("g (float[n, 3] x) => (float[n, 3] y) <float p = {1}> { y = Mul(x, p) }")
    lazy(model, "p", (1 << 20,))
    assert DeadCode().apply(model, context()).rewrites == 0
