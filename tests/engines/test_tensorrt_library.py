"""The TensorRT library that the tests build engines with."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUILD = """
import sys, onnx.parser
try:
    import tensorrt as trt
except ImportError:
    import tensorrt_rtx as trt

model = onnx.parser.parse_model('''
<ir_version: 10, opset_import: ["" : 23]>
g (float16[2,8,128,64] q, float16[2,8,128,64] k, float16[2,8,128,64] v) => (float16[2,8,128,64] y)
{ y = Attention(q, k, v) }
''')
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
plan = builder.build_serialized_network(network, builder.create_builder_config())
sys.stdout.buffer.write(bytes(plan)[:4])
assert plan.nbytes > 10_000, plan.nbytes
"""


@pytest.mark.tensorrt
def test_a_child_process_builds_an_attention_engine() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout) == 4


@pytest.mark.tensorrt
def test_the_module_tells_the_version_of_the_library_not_of_the_bindings(tensorrt: ModuleType) -> None:
    folder = Path(str(tensorrt.__file__)).parent
    path = next(iter(sorted(folder.glob("libtensorrt_rtx.so*"))), None)
    if path is None:
        pytest.skip("an installed TensorRT keeps its libraries elsewhere")
    library = ctypes.CDLL(str(path))
    parts = ("Major", "Minor", "Patch", "Build")
    told = ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
    assert tensorrt.__version__ == told
