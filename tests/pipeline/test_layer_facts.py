from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from optimize.facts import LayerFact
from optimize.pipeline import layer_facts


def layers(body: str, initializers: str = "", inputs: str = "float[2,4] x") -> list[tuple[str, str, str, int]]:
    text = f"""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g ({inputs}) => (float[N,M] y) <{initializers}> {{ {body} }}
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    return [(item.op_type, item.weight, item.activation, item.parameters) for item in layer_facts.of(model)]


def test_a_plain_layer_has_its_weights_and_its_inputs_format() -> None:
    assert layers("y = MatMul(x, w)", "float[4,1] w = {1,2,3,4}") == [("MatMul", "float32", "float32", 4)]


def test_a_quantized_layer_is_told_by_what_is_stored_through_the_dequantize() -> None:
    found = layers(
        "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) d = DequantizeLinear(w, s) t = Transpose(d) "
        "y = MatMul(a, t)",
        "int8[1,4] w = {1,2,3,4}, float s = {0.5}, uint8 z = {0}",
    )
    assert found == [("MatMul", "int8", "uint8", 4)]


def test_a_blocked_weight_says_its_block() -> None:
    found = layers(
        "d = DequantizeLinear<axis = 0, block_size = 2>(w, s) y = MatMul(x, d)",
        "int8[4,1] w = {1,2,3,4}, float[2,1] s = {0.5, 0.5}",
    )
    assert found == [("MatMul", "int8 ×2", "float32", 4)]


def test_integer_matmuls_of_the_runtime_are_layers_too() -> None:
    found = layers(
        "q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast<to = 1>(i) y = Mul(f, s)",
        "int8[4,1] w = {1,2,3,4}",
    )
    assert found == [("MatMulInteger", "int8", "uint8", 4)]


def test_a_product_of_two_activations_has_no_weight_and_a_lookup_in_an_activation_is_no_layer() -> None:
    assert layers("t = Transpose(x) y = MatMul(x, t)") == [("MatMul", "", "float32", 0)]
    assert layers("y = Gather(x, i)", inputs="float[2,4] x, int64[3] i") == []
    found = layers("y = Gather(w, i)", "float[2,4] w = {1,2,3,4,5,6,7,8}", "int64[3] i")
    assert found == [("Gather", "float32", "", 8)]


def test_four_bit_matmuls_count_their_weights_not_their_bytes() -> None:
    found = layers(
        "y = com.microsoft.MatMulNBits<K = 4, N = 1, bits = 4, block_size = 16>(x, w, s)",
        "uint8[1,1,8] w = {0,0,0,0,0,0,0,0}, float[1] s = {1}",
    )
    assert found == [("com.microsoft.MatMulNBits", "int4 ×16", "float32", 4)]


@pytest.mark.parametrize(
    ("notes", "name"),
    [({}, "node_1"), ({"pkg.torch.onnx.name_scopes": "['', 'encoder', 'encoder.0', 'matmul']"}, "encoder.0")],
)
def test_a_layer_is_called_by_its_source_module(notes: dict[str, str], name: str) -> None:
    w = ir.Value(name="w", const_value=ir.tensor([[1.0]], dtype=ir.DataType.FLOAT))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([1, 1]))
    node = ir.Node("", "MatMul", [x, w], name="node_1", metadata_props=notes)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20})
    found = layer_facts.of(ir.Model(graph, ir_version=10))
    assert found == (LayerFact(name=name, op_type="MatMul", weight="float32", activation="float16", parameters=1),)
