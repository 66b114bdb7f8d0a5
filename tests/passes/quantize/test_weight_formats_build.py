"""Every weight format that the passes write for TensorRT passes its parser and builder."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes.base import Pass, PassContext
from passes.quantize.fp4 import QuantizeFp4
from passes.quantize.fp8 import QuantizeFp8
from passes.quantize.int4 import QuantizeInt4
from tests.support import runner
from tests.support.calibration import Batches

pytestmark = pytest.mark.tensorrt

RNG = np.random.default_rng(0)
BODIES = {
    "MatMul": ("y = MatMul(x, w)", (128, 64)),
    "Gemm transB": ("y = Gemm <transB = 1> (x, w)", (64, 128)),
    "behind Transpose": ("t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)", (64, 128)),
}
PASSES = {
    "int4 block 32": QuantizeInt4(),
    "int4 block 128 gptq": QuantizeInt4(block_size=128, algorithm="gptq"),
    "fp8": QuantizeFp8(),
    "fp8 weights": QuantizeFp8(activations="none"),
    "fp8 block 32": QuantizeFp8(activations="none", block_size=32),
    "fp8 block 128": QuantizeFp8(activations="none", block_size=128),
    "mxfp8": QuantizeFp8(activations="none", block_size=32, scales="power_of_two"),
    "nvfp4": QuantizeFp4(),
    "nvfp4 activations": QuantizeFp4(activations="dynamic"),
    "mxfp4": QuantizeFp4(format="mxfp4"),
}


def why_not_built(trt: ModuleType, model: ir.Model) -> str:
    """Parse and build; "" when it works, else what TensorRT said."""
    logger: Any = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(ir.to_proto(model).SerializeToString()):
        return "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
    return "" if builder.build_serialized_network(network, builder.create_builder_config()) else "no engine"


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", PASSES)
def test_it_builds(tensorrt: ModuleType, name: str, body: str) -> None:
    text, shape = BODIES[body]
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float16[8, 128] x) => (float16[8, 64] y) {{ {text} }}'
    )
    held = (RNG.standard_normal(shape) * 0.1).astype(np.float16)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(held, "w"))
    model = ir.from_proto(proto)
    samples = Batches(({"x": RNG.standard_normal((8, 128)).astype(np.float16)},))
    quantize: Pass = PASSES[name]
    result = quantize.apply(model, PassContext(target=runner.TENSORRT, calibration=samples))
    assert result.rewrites == 1
    assert why_not_built(tensorrt, model) == ""
