"""Raising the opset keeps numbers, names, notes and weights, where ONNX's own converter does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.base import PassFailed
from passes.opset import current, lift
from tests.support.runner import run

RNG = np.random.default_rng(8)


def model_of(text: str, opset: int) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["" : {opset}]>\n{text}'))


def assert_same_numbers(model: ir.Model, least: int, kind: type = np.float32) -> None:
    shape = [size if isinstance(size, int) else 2 for size in model.graph.inputs[0].shape or ()]
    feeds = {"x": RNG.normal(0, 1, shape).astype(kind)}
    expected = run(model, feeds)
    assert lift(model, least)
    assert current(model) == least
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for name, got in run(model, feeds).items():
        np.testing.assert_array_equal(got, expected[name])


RESIZED = """g (float[1, 1, 4, 4] x) => (float[1, 1, a, b] y) {{
    s = Constant <value = float[4] {scales}> ()
    y = {op}(x, s)
}}"""
LARGER, SMALLER = "{1.0, 1.0, 1.5, 1.75}", "{1.0, 1.0, 0.5, 0.6}"


@pytest.mark.parametrize(
    ("op", "opset", "scales"),
    [
        ('Upsample <mode = "linear"> ', 9, LARGER),
        ('Upsample <mode = "nearest"> ', 9, LARGER),
        ('Resize <mode = "linear"> ', 10, LARGER),
        ('Resize <mode = "nearest"> ', 10, LARGER),
        ('Resize <mode = "nearest"> ', 10, SMALLER),
    ],
)
def test_resizing_looks_up_where_it_did(op: str, opset: int, scales: str) -> None:
    assert_same_numbers(model_of(RESIZED.format(op=op, scales=scales), opset), 13)


@pytest.mark.parametrize(
    "scales",
    [
        "s = Constant <value = float[4] {1.0, 1.0, 2.0, 0.7}> ()",
        "t = Constant <value = float[2] {0.7, 0.7}> () o = Constant <value = float[2] {1.0, 1.0}> ()"
        " s = Concat <axis = 0> (o, t)",
    ],
    ids=["both ways", "computed"],
)
def test_resizing_that_no_newer_operator_does_is_refused(scales: str) -> None:
    text = f'g (float[1, 1, 7, 7] x) => (float[1, 1, a, b] y) {{ {scales} y = Resize <mode = "MODE"> (x, s) }}'
    model = model_of(text.replace("MODE", "nearest"), 10)
    with pytest.raises(PassFailed, match="for which no newer one rounds alike"):
        lift(model, 13)
    assert current(model) == 10
    assert lift(model_of(text.replace("MODE", "linear"), 10), 13)


def test_limits_and_fills_have_the_type_of_the_data() -> None:
    text = """g (float16[2, 3] x) => (float16[2, 5] y) {
        a = Clip <max = 0.5> (x)
        y = Pad <pads = [0, 1, 0, 1], value = 2.0> (a)
    }"""
    assert_same_numbers(model_of(text, 9), 19, np.float16)


def test_softmax_before_13_still_flattens() -> None:
    assert_same_numbers(
        model_of("g (float[n, 3, 4] x) => (float[n, 3, 4] y) { y = Softmax <axis = 1> (x) }", 11), 13
    )


def test_branches_are_converted_and_keep_their_notes() -> None:
    text = """g (float[2, 1] x) => (float[2] y) {
        c = Constant <value = bool {1}> ()
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Squeeze <axes = [1]> (x) },
            else_branch = e () => (float[2] b) { n = Neg(x) b = Squeeze <axes = [1]> (n) }
        >
    }"""
    model = model_of(text, 11)
    for number, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        node.metadata_props["number"] = str(number)
    expected = {
        str(node.outputs[0].name): node.metadata_props["number"]
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
    }
    assert_same_numbers(model, 13)
    found = {
        str(node.outputs[0].name): node.metadata_props.get("number")
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
    }
    assert expected.items() <= found.items()


def test_branches_that_nothing_reads_and_functions_with_branches_may_go_and_come() -> None:
    branch = """If (c) <
        then_branch = t () => (float[2, 1] {0}) {{ {0} = Neg({1}) }},
        else_branch = e () => (float[2, 1] {0}n) {{ {0}n = Relu({1}) }}
    >"""
    text = f"""<ir_version: 8, opset_import: ["" : 11, "local" : 1]>
    g (float[2, 1] x) => (float[2, 1] y) {{
        c = Constant <value = bool {{1}}> ()
        dead = {branch.format("p", "x")}
        f = local.twice(x)
        y = {branch.format("q", "f")}
    }}
    <domain: "local", opset_import: ["" : 11]>
    twice (a) => (b) {{
        c = Constant <value = bool {{0}}> ()
        h = {branch.format("r", "a")}
        b = Add(h, h)
    }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    (function,) = model.functions.values()
    for node in (*ir.traversal.RecursiveGraphIterator(model.graph), *function):
        node.metadata_props["of"] = str(node.outputs[0].name)
    assert_same_numbers(model, 13)
    found = {node.metadata_props.get("of") for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    assert {"c", "y", "q", "qn", "b"} <= found


def test_weights_stay_the_tensors_they_were() -> None:
    model = model_of("g (float[n, 40] x) => (float[n, 40] y) { y = MatMul(x, w) }", 11)
    given = model.graph[0].inputs[1]
    assert given is not None
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.eye(40, dtype=np.float32)), dtype=ir.DataType.FLOAT, shape=ir.Shape([40, 40])
    )
    given.const_value, given.type, given.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
    tensor.name = "w"
    model.graph.register_initializer(given)
    model.graph.metadata_props["made"] = "by hand"
    assert lift(model, 13)
    assert model.graph.initializers["w"].const_value is tensor
    assert model.graph.metadata_props["made"] == "by hand"
    assert model.ir_version == 7


def test_the_least_is_enough() -> None:
    model = model_of("g (float[n] x) => (float[n] y) { y = Neg(x) }", 13)
    graph = model.graph
    assert not lift(model, 13)
    assert model.graph is graph


def test_a_refused_conversion_says_what_the_converter_said(capfd: pytest.CaptureFixture[str]) -> None:
    text = """g (float[1, 2, 2, 2] x, float[8] s) => (float[1, 2, 2, 2] y) {
        y = BatchNormalization <spatial = 0> (x, s, s, s, s)
    }"""
    model = model_of(text, 7)
    with pytest.raises(
        PassFailed, match=r"INT8 needs opset 13, this model has 7 and cannot be converted: .*spatial"
    ):
        lift(model, 13, "INT8")
    assert current(model) == 7
    assert capfd.readouterr().err == ""
