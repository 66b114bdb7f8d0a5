"""Notes that name the exporting machine."""

from __future__ import annotations

import pytest

from passes.clean.strip_metadata import STACK_TRACE, StripMetadata
from passes.names import NAME_SCOPES, module_of

MODEL = "g (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }"


def test_stack_traces_go_and_module_names_stay(graph, cleaned, found) -> None:
    model = graph(MODEL)
    model.graph[0].metadata_props.update(
        {
            STACK_TRACE: "somewhere",
            NAME_SCOPES: "['', 'encoder', 'relu']",
            "note": 'File "/home/ann/model.py", line 3',
        }
    )
    assert found(cleaned(StripMetadata(), model)) == {"note": 2}
    assert model.graph[0].metadata_props == {NAME_SCOPES: "['', 'encoder', 'relu']"}
    assert module_of(model.graph[0]) == "encoder"


@pytest.mark.parametrize(
    "text",
    ["/home/ann/x.py", "from /srv/a/b", 'File "/opt/m.py"', "C:\\Users\\ann\\m.py", "path=/a/b/c", "D:/models/x"],
)
def test_a_doc_string_with_an_absolute_path_goes(text: str, graph, cleaned, found) -> None:
    model = graph(MODEL)
    model.graph[0].doc_string = model.doc_string = model.graph.doc_string = text
    assert found(cleaned(StripMetadata(), model)) == {"doc_string": 3}
    assert not model.graph[0].doc_string


@pytest.mark.parametrize(
    "text", ["/encoder/layer", "a / b", "1/2", "relative/path.py", "https://example.org", "x: /y"]
)
def test_text_without_a_path_stays(text: str, graph, cleaned, found) -> None:
    if text == "/encoder/layer":
        text = "/encoder"
    model = graph(MODEL)
    model.graph[0].doc_string = text
    assert found(cleaned(StripMetadata(), model)) == {}
    assert model.graph[0].doc_string == text


def test_functions_branches_and_values_are_cleaned_too(graph, cleaned, found) -> None:
    model = graph(
        """g (bool c, float[2] x) => (float[2] y) {
            a = local.f(x)
            y = If(c) <then_branch = t () => (float[2] b) { b = Neg(a) },
                   else_branch = e () => (float[2] d) { d = Abs(a) }>
        }""",
        functions='<domain: "local", opset_import: ["" : 21]> f (v) => (w) { w = Relu(v) }',
    )
    inside = [node for node in model.graph.all_nodes() if node.op_type == "Neg"]
    inside += list(next(iter(model.functions.values())))
    for node in inside:
        node.metadata_props[STACK_TRACE] = "x"
        node.outputs[0].metadata_props[STACK_TRACE] = "x"
    model.metadata_props["exported from"] = "/home/ann/project"
    assert found(cleaned(StripMetadata(), model)) == {"note": 5}
