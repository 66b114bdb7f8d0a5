"""A small real model and recipe: a two-layer perceptron as an ONNX file, quick enough for every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

RECIPE = """\
schema_version: 1
name: tiny
variables:
  passes: clean
source:
  kind: onnx
  path: tiny.onnx
  ranges: {batch: {minimum: 1, typical: 4, maximum: 16}}
target: cpu
passes:
  - ${passes}
engine: {kind: onnxruntime}
evaluate:
  data: random
  samples: 32
  batch: 8
  throughput: {runs: 5, seconds: 1}
gates:
  accuracy.cosine.min: 0.99
"""


def write_model(path: Path, *, width: int = 64, seed: int = 0) -> Path:
    """Write `path`: x (batch, width) → y (batch, 8), float32, random weights."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(width, width)).astype(np.float32) / np.sqrt(width).astype(np.float32)
    second = rng.normal(size=(width, 8)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
            onnx.helper.make_node("Relu", ["h"], ["r"], name="relu"),
            onnx.helper.make_node("Identity", ["r"], ["i"], name="idle"),
            onnx.helper.make_node("MatMul", ["i", "w2"], ["y"], name="second"),
        ],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", width])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 8])],
        [onnx.numpy_helper.from_array(first, "w1"), onnx.numpy_helper.from_array(second, "w2")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """Write the model and a recipe for it into `folder`; the recipe's path."""
    write_model(folder / "tiny.onnx")
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path
