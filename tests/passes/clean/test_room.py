"""The room as a recipe's bare `clean` runs it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from passes import registry
from tests.support.runner import context, run

X = np.float32([[1, -2, 3]])


def test_weights_of_gigabytes_are_never_read(graph, lazy, ops) -> None:
    model = graph("""g (float[n, 32768] x) => (float[n, 32768] y)
            <float w = {1}, float v = {1}, float[1] one = {1}> {
        a = MatMul(x, w)
        i = Identity(a)
        t = Transpose(v)
        b = MatMul(i, t)
        c = MatMul(i, t)
        d = Add(b, c)
        y = Mul(d, one)
    }""")
    lazy(model, "w", (32768, 32768))
    lazy(model, "v", (32768, 32768))
    for name in registry.room_default("clean"):
        registry.find(name)().apply(model, context())
    assert ops(model) == {"MatMul": 2, "Transpose": 1, "Add": 1}
    assert {value.const_value.nbytes for value in model.graph.initializers.values()} == {4 << 30}


def test_a_second_round_finds_nothing_to_do(graph) -> None:
    model = graph("""g (bool c, float[2, 3] x) => (float[2, 3] y) <bool yes = {1}, float[1] k = {2}> {
        s = Shape(x)
        r = Reshape(x, s)
        e = Sqrt(k)
        a = If(yes) <then_branch = t () => (float[2, 3] b) { b = Mul(r, e) },
                     else_branch = u () => (float[2, 3] d) { d = Abs(r) }>
        f = Mul(x, e)
        y = Add(a, f)
    }""")
    expected = run(model, {"c": np.asarray(True), "x": np.ones((2, 3), np.float32)})
    for name in registry.room_default("clean"):
        registry.find(name)().apply(model, context())
    assert [node.op_type for node in model.graph] == ["Mul", "Add"]
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    for name in registry.room_default("clean"):
        assert registry.find(name)().apply(model, context()).rewrites == 0, name
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(
        run(model, {"c": np.asarray(True), "x": np.ones((2, 3), np.float32)})["y"], expected["y"]
    )
