"""Unique names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes.base import PassFailed
from passes.clean.names import UniqueNames
from tests.support.runner import context

MODEL = "g (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }"


def test_an_inner_value_called_like_an_output_is_renamed(graph, cleaned, found) -> None:
    model = graph(MODEL)
    model.graph[0].outputs[0].name = "y"  # what torch's exporter does; ONNX Runtime refuses to load it
    result = UniqueNames().apply(model, context())
    assert found(result)["value"] == 1
    assert (model.graph.outputs[0].name, model.graph.outputs[0].producer().op_type) == ("y", "Neg")
    cleaned(UniqueNames(), model, x=np.float32([1, -2]))


def test_nameless_nodes_get_names_of_their_own(graph) -> None:
    model = graph(MODEL)
    UniqueNames().apply(model, context())
    names = [node.name for node in model.graph]
    assert all(names)
    assert len(set(names)) == 2


def test_names_inside_a_branch_do_not_hide_outer_ones(graph, cleaned) -> None:
    model = graph("""g (bool c, float[2] x) => (float[2] y) {
        a = Relu(x)
        y = If(c) <then_branch = t () => (float[2] b) { b = Neg(a) },
                   else_branch = e () => (float[2] d) { d = Abs(a) }>
    }""")
    inner = next(node for node in model.graph.all_nodes() if node.op_type == "Neg")
    inner.outputs[0].name = "a"
    UniqueNames().apply(model, context())
    cleaned(UniqueNames(), model, c=True, x=np.float32([1, -2]))
    assert inner.outputs[0].name != "a"


def test_a_model_with_unique_names_is_left_alone(graph, cleaned, found) -> None:
    model = graph("g (float[2] x) => (float[2] y) { [n1] a = Relu(x)  [n2] y = Neg(a) }")
    assert found(cleaned(UniqueNames(), model)) == {}


def test_two_outputs_of_one_name_cannot_be_mended(graph) -> None:
    model = graph("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)  z = Neg(x) }")
    model.graph.outputs[1].name = "y"
    with pytest.raises(PassFailed, match="two graph outputs are called 'y'"):
        UniqueNames().apply(model, context())


def test_a_weight_called_like_an_inner_value_keeps_its_data(graph, cleaned) -> None:
    model = graph("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Add(x, w)  y = Neg(a) }")
    model.graph[0].outputs[0].name = "w"
    UniqueNames().apply(model, context())
    assert isinstance(model.graph.initializers["w"].const_value, ir.TensorProtocol)
    cleaned(UniqueNames(), model, x=np.float32([1, -2]))
