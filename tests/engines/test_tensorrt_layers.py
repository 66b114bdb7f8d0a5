"""Layer lists, from the engine inspector's JSON and from a builder's log."""

from __future__ import annotations

import json

import onnx.parser
import onnx_ir as ir

from optimize.engines import tensorrt_layers

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float16[4,8] x, float16[8,8] w) => (float16[4,8] y)
{ [first] a = MatMul(x, w)
  [second] b = MatMul(a, w)
  [third] c = Relu(b)
  [folded] d = MatMul(w, w)
  [last] y = MatMul(c, d) }
"""


def tensor(name: str, dtype: str, shape: list[int]) -> dict[str, object]:
    return {"Name": name, "Dimensions": shape, "Datatype": dtype, "Format": "(Linear) Row major"}


INSPECTED = {
    "Layers": [
        {
            "Name": "first_myl0_0", "LayerType": "gemm", "Metadata": "[ONNX Layer: first]",
            "Inputs": [tensor("x", "FP8", [4, 8])], "Constants": [tensor("w", "FP8", [8, 8])],
            "Outputs": [tensor("a", "Half", [4, 8])],
        },
        {
            "Name": "__myl_Fc_0", "LayerType": "runtime_fusion",
            "Metadata": "[ONNX Layer: second]\x1f[ONNX Layer: third]",
            "Inputs": [tensor("a", "Half", [4, 8])],
            "Constants": [tensor("w", "Int4", [8, 8]), tensor("alpha", "Float", [1])],
            "Outputs": [tensor("c", "Half", [4, 8])],
        },
        {
            "Name": "__myl_MoveTran_myl0_2", "LayerType": "kgen", "Metadata": "[ONNX Layer: last]",
            "Inputs": [tensor("c", "Half", [4, 8])], "Constants": [],
            "Outputs": [tensor("e", "Half", [8, 4])],
        },
        {
            "Name": "last_myl0_3", "LayerType": "gemm", "Metadata": "[ONNX Layer: last]",
            "Inputs": [tensor("e", "Half", [8, 4])], "Constants": [tensor("d", "Half", [8, 8])],
            "Outputs": [tensor("y", "Half", [4, 8])],
        },
    ],
}  # fmt: skip


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(MODEL))


def test_every_matmul_is_counted_once_with_the_precision_it_really_runs_in() -> None:
    layers = tensorrt_layers.from_inspector(json.dumps(INSPECTED))
    told = tensorrt_layers.summarise("inspector", layers, model())
    assert told.counts == {"matmuls": {"fp8": 1, "int4 weights, fp16": 1, "folded away": 1, "fp16": 1}}
    assert told.summary[0].startswith("1 of 4 matmuls run in")
    assert told.reformats == 1


def test_fused_nodes_are_told_apart_by_the_librarys_separator() -> None:
    layers = tensorrt_layers.from_inspector(json.dumps(INSPECTED))
    assert layers[1].nodes == ("second", "third")


def test_a_layer_told_by_name_alone_is_kept_without_a_precision() -> None:
    layers = tensorrt_layers.from_inspector(json.dumps({"Layers": ["conv1 + relu1"]}))
    assert layers[0].name == "conv1 + relu1"
    assert layers[0].precision == "not told"


def test_the_builders_log_gives_the_same_layers() -> None:
    line = (
        "Name: first_myl0_0, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,8], Strides: [8,1], "
        "StrideOrder: [1,0], Datatype: FP8, Format: (Linear) Row major linear format }], Constants: "
        "[ { Name: w, Dimensions: [8,8], Strides: [8,1], StrideOrder: [1,0], Datatype: FP8, Format: (Linear) "
        "Row major linear format }], Outputs: [ { Name: a, Dimensions: [-1,8], Strides: [8,1], StrideOrder: "
        "[1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: first]\x1f[ONNX Layer: third]"
    )
    (layer,) = tensorrt_layers.from_log(f"Layers:\n{line}\n\nI/O Tensors:\n Name: x")
    assert (layer.kind, layer.precision, layer.nodes) == ("gemm", "fp8", ("first", "third"))
    assert layer.inputs[0].shape == (-1, 8)
