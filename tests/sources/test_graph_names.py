"""Interface names: whatever the user asks for, every name belongs to one value and the model still loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines.onnxruntime_session import open_onnx
from optimize.sources.graph_names import STACK_TRACE, rename_axes, rename_interface, strip_traces

X = np.array([[1, -2]], np.float32)


def model(body: str, outputs: str) -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        agraph (float[s7, 2] x) => ({outputs}) <float[2] w = {{3, 4}}> {{ {body} }}"""
    )


def run(graph: ir.Model, folder: Path, name: str = "x") -> dict[str, list[float]]:
    ir.save(graph, folder / "model.onnx")
    with open_onnx(folder / "model.onnx", optimized=False) as session:
        return {key: value.ravel().tolist() for key, value in session.run({name: X}).items()}


@pytest.mark.parametrize("names", [("a", "w"), ("b", "a"), ("c", "node"), ("out", "a_1")])
def test_an_output_may_be_called_like_any_inner_value(names: tuple[str, str], tmp_path: Path) -> None:
    graph = model("a = Abs(x) b = Add(a, w) c = Neg(b)", "float[s7, 2] c, float[s7, 2] b")
    rename_interface(graph, ["x"], names)
    assert run(graph, tmp_path) == {names[0]: [-4, -6], names[1]: [4, 6]}


def test_input_and_output_may_swap_their_names(tmp_path: Path) -> None:
    graph = model("c = Neg(x)", "float[s7, 2] c")
    rename_interface(graph, ["c"], ["x"])
    assert run(graph, tmp_path, "c") == {"x": [-1, 2]}


def test_an_output_that_is_an_input_a_weight_or_listed_twice_gets_a_value_of_its_own(tmp_path: Path) -> None:
    graph = model("c = Neg(x)", "float[s7, 2] c")
    graph.graph.outputs.extend([graph.graph.outputs[0], graph.graph.inputs[0], graph.graph.initializers["w"]])
    rename_interface(graph, ["x"], ["one", "two", "same", "weight"])
    assert run(graph, tmp_path) == {"one": [-1, 2], "two": [-1, 2], "same": [1, -2], "weight": [3, 4]}


def test_values_of_sub_graphs_are_renamed_too(tmp_path: Path) -> None:
    graph = model(
        """yes = Constant<value = bool {1}>()
        c = If<then_branch = t () => (float[s7, 2] y) { y = Neg(x) },
               else_branch = e () => (float[s7, 2] z) { z = Abs(x) }>(yes)""",
        "float[s7, 2] c",
    )
    rename_interface(graph, ["x"], ["y"])
    assert run(graph, tmp_path) == {"y": [-1, 2]}


def test_symbols_are_renamed_inside_expressions_and_nowhere_else() -> None:
    graph = model("c = Neg(x)", "float[s7, 2] c")
    graph.graph.outputs[0].shape = ir.Shape(["2*s7 + s77", 2])
    rename_axes(graph, {"s7": "batch"})
    assert str(graph.graph.inputs[0].shape) == "[batch,2]"
    assert str(graph.graph.outputs[0].shape[0]) == "2*batch + s77"


def test_stack_traces_go_and_other_notes_stay() -> None:
    graph = model("c = Neg(x)", "float[s7, 2] c")
    node = graph.graph[0]
    node.metadata_props.update({STACK_TRACE: "/home/someone/net.py", "kept": "yes"})
    strip_traces(graph)
    assert dict(node.metadata_props) == {"kept": "yes"}
