"""What every pass writes for TensorRT builds there; a pass without a graph here has such a test in its own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from passes import registry
from tests.support.graphs import graph, operators
from tests.support.runner import TENSORRT, context

ROOT = Path(__file__).parents[2]
X, Y = "float[B,S,8] x", "float[B,S,8] y"
EIGHT = (
    "float[8] w = {1,2,3,4,5,6,7,8}, float[8] b = {8,7,6,5,4,3,2,1}, int64[1] last = {-1}, float eps = {0.00001}"
)
CONV = (
    "float[2,2,1,1] w = {1,2,3,4}, float[2] s = {0.5,2}, float[2] b = {1,-1}, float[2] mean = {0.3,0.1},"
    " float[2] var = {0.7,1.9}, float[2,1,1] three = {1,-1}"
)
STEM = "float[2,3,1,2] w = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}"
MASK = "float zero = {0.0}, float low = {-3.4028234663852886e38}"
SHAPES = "int64[1] four = {4}, int64[1] zero = {0}, int64[1] two = {2}"

GRAPHS: dict[str, tuple[str, str, str, str]] = {
    "cast.bf16": ("p = Mul(x, w) y = Relu(p)", X, Y, EIGHT),
    "cast.fp16": ("p = Mul(x, w) y = Relu(p)", X, Y, EIGHT),
    "fuse.attention": (
        "t = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)",
        "float16[B,4,S,16] q, float16[B,4,T,16] k, float16[B,4,T,16] v", "float16[B,4,S,16] y",
        "",
    ),
    "fuse.conv_batch_norm": (
        "c = Conv(x, w) y = BatchNormalization(c, s, b, mean, var)", "float[B,2,4,5] x", "float[B,2,4,5] y", CONV,
    ),
    "fuse.conv_bias": ("c = Conv(x, w) y = Add(c, three)", "float[B,2,4,5] x", "float[B,2,4,5] y", CONV),
    "fuse.gelu": (
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)", X, Y,
        "float root = {1.4142135}, float half = {0.5}, float one = {1.0}",
    ),
    "fuse.layer_norm": (
        "a = ReduceMean(x, last) d = Sub(x, a) q = Mul(d, d) m = ReduceMean(q, last) s = Add(m, eps) r = Sqrt(s)"
        " n = Div(d, r) k = Mul(n, w) y = Add(k, b)", X, Y, EIGHT,
    ),
    "fuse.layout": ("a = Transpose<perm=[0,2,1]>(x) c = Transpose<perm=[0,2,1]>(a) y = Relu(c)", X, Y, ""),
    "fuse.qkv_merge": (
        "q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)", "float[B,S,2] x",
        "float[B,S,2] q, float[B,S,2] k, float[B,S,3] v",
        "float[2,2] a = {1,2,3,4}, float[2,2] b = {5,6,7,8}, float[2,3] c = {9,1,2,3,4,5}",
    ),
    "fuse.rms_norm": (
        "q = Mul(x, x) m = ReduceMean(q, last) s = Add(m, eps) r = Sqrt(s) n = Div(x, r) y = Mul(w, n)",
        X, Y, EIGHT,
    ),
    "fuse.shape_arithmetic": (
        "h = Shape(x) s = Slice(h, zero, two) t = Concat<axis=0>(s, two, four) y = Reshape(x, t)", X,
        "float[B,S,2,4] y", SHAPES,
    ),
    "fuse.silu": ("s = Sigmoid(x) y = Mul(s, x)", X, Y, ""),
    "fuse.softmax_guard": (
        "s = MatMul(q, k) g = Where(m, s, low) p = Softmax(g) n = IsNaN(p) y = Where(n, zero, p)",
        "float[B,S,8] q, float[B,8,T] k, bool[B,S,T] m", "float[B,S,T] y", MASK,
    ),
    "surgery.pad_channels": ("y = Conv(x, w)", "float[B,3,4,6] x", "float[B,2,4,5] y", STEM),
}  # fmt: skip
"""By pass: nodes, inputs, outputs, weights."""

OWN_FILES = {
    "fuse.group_norm": "fuse/test_group_norm.py",
    "fuse.rotary": "fuse/test_rotary.py",
    "quantize.fp4": "quantize/test_weight_formats_build.py",
    "quantize.fp8": "quantize/test_weight_formats_build.py",
    "quantize.int4": "quantize/test_weight_formats_build.py",
    "quantize.int4_planes": "quantize/test_int4_planes.py",
    "quantize.int8": "quantize/test_int8_tensorrt.py",
    "quantize.int8_blocks": "../engines/test_tensorrt_plugin.py",
    "quantize.modelopt": "quantize/test_modelopt_build.py",
    "quantize.modelopt_torch": "quantize/test_modelopt_build.py",
    "surgery.gelu_tanh": "surgery/test_gelu_tanh.py",
    "surgery.plain_attention": "surgery/test_plain_attention.py",
    "surgery.split_outliers": "surgery/test_split_outliers.py",
    "surgery.stacked_heads": "surgery/test_stacked_heads.py",
    "surgery.stem_space_to_depth": "surgery/test_stem_space_to_depth.py",
}
"""Where a pass's build is tested that needs more than a graph."""

NOTHING = {
    "fuse.matmul_bias": ("p = MatMul(x, w) y = Add(p, b)", "float[B,4] x", "float[B,3] y",
                         "float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,-2,3}"),
    "fuse.skip_norm": ("a = Add(x, s) y = LayerNormalization(a, w, b)", f"{X}, float[B,S,8] s", Y, EIGHT),
}  # fmt: skip
"""Passes that leave TensorRT's graphs as they are."""

OTHERS = {"quantize.auto", "quantize.simulate", "quantize.embeddings"}
"""Made of other passes; for machines that lack a format; refused for TensorRT, which would undo it."""


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", GRAPHS)
def test_it_builds(name: str, tmp_path: Path) -> None:
    from tests.support.tensorrt_rtx.building import build

    model = graph(*GRAPHS[name])
    assert registry.find(name)().apply(model, context(TENSORRT)).rewrites >= 1
    build(model, tmp_path)


@pytest.mark.parametrize("name", NOTHING)
def test_it_leaves_a_graph_for_tensorrt_as_it_is(name: str) -> None:
    model = graph(*NOTHING[name])
    before = operators(model)
    assert registry.find(name)().apply(model, context(TENSORRT)).rewrites == 0
    assert operators(model) == before


def test_every_pass_that_writes_for_tensorrt_is_built() -> None:
    rooms = ("cast", "fuse", "quantize", "surgery")
    known = {name for name in registry.names() if name.partition(".")[0] in rooms}
    assert known == {*GRAPHS, *OWN_FILES, *NOTHING, *OTHERS}
    for name, file in OWN_FILES.items():
        text = (ROOT / "tests" / "passes" / file).read_text(encoding="utf-8")
        assert "mark.tensorrt" in text, name
