"""What ModelOpt learned or wrote, for TensorRT, passes its parser and builder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes import lessons, names
from passes.lessons import Grid, LayerLesson, Lessons
from passes.quantize.modelopt import QuantizeModelOpt
from passes.quantize.modelopt_torch import QuantizeModelOptTorch
from tests.support.calibration import normal
from tests.support.runner import TENSORRT, context

pytestmark = pytest.mark.tensorrt

ALL = TENSORRT.model_copy(update={"precisions": ("fp32", "fp16", "fp8", "int8", "int4", "fp4")})
BLOCKS = {"int4": 128, "nvfp4": 16}


def why_not_built(trt: ModuleType, model: ir.Model) -> str:
    """Parse and build; "" when it works, else what TensorRT said."""
    logger: Any = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(ir.to_proto(model).SerializeToString()):
        return "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
    return "" if builder.build_serialized_network(network, builder.create_builder_config()) else "no engine"


@pytest.mark.parametrize("factors", [False, True], ids=["plain", "with factors"])
@pytest.mark.parametrize("kind", get_args(Grid))
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_it_builds(tensorrt: ModuleType, dtype: str, kind: Grid, factors: bool, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({dtype}[8, 128] x) => ({dtype}[8, 64] y) '
        "{ y = Gemm <transB = 1> (x, w) }"
    )
    kept = np.random.default_rng(0).normal(0, 0.1, (64, 128)).astype({"float": "f4", "float16": "f2"}[dtype])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(kept, "w"))
    model = ir.from_proto(proto)
    model.graph[0].metadata_props[names.MODULE] = "layer"
    held = kept.astype(np.float32)
    magnitudes = np.abs(held)
    amax = {
        "int8": magnitudes.max(axis=1),
        "fp8": magnitudes.max(),
        "int4": magnitudes.max(axis=1)[:, None],
        "nvfp4": magnitudes.max(),
    }[kind]
    learned = LayerLesson(
        "layer", kind, amax, BLOCKS.get(kind, 0), None if kind == "int4" else kind, np.float32(4),
        np.linspace(0.5, 2, 128).astype(np.float32) if factors else None,
        magnitudes.max(axis=1), np.linalg.norm(held, axis=1),
    )  # fmt: skip
    lessons.write(Lessons((learned,)), tmp_path / "lessons.npz")
    asked = {lessons.key({"config": "INT8_DEFAULT_CFG"}): str(tmp_path / "lessons.npz")}
    assert QuantizeModelOptTorch().apply(model, context(ALL, lessons=asked)).rewrites == 1
    assert why_not_built(tensorrt, model) == ""


@pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason='nvidia-modelopt is not installed (the extra "modelopt")'
)
@pytest.mark.parametrize(
    "quantize",
    [
        QuantizeModelOpt(format="int8", calibration="max"),
        QuantizeModelOpt(format="fp8", calibration="max"),
        QuantizeModelOpt(format="int4", algorithm="rtn"),
    ],
    ids=lambda quantize: quantize.format,
)
def test_modelopts_own_graph_builds(tensorrt: ModuleType, quantize: QuantizeModelOpt) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[8, 128] x) => (float[8, 64] y) { y = MatMul(x, w) }'
    )
    held = np.random.default_rng(0).normal(0, 0.1, (128, 64)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(held, "w"))
    model = ir.from_proto(proto)
    assert quantize.apply(model, context(ALL, calibration=normal((8, 128)))).rewrites == 1
    assert why_not_built(tensorrt, model) == ""
