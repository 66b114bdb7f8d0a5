"""Dense products, attention and norms in the built-in plugin: what is replaced, by what, and what it computes."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from optimize.engines import (
    tensorrt_dense,
    tensorrt_dense_choice,
    tensorrt_dense_layer,
    tensorrt_device,
    tensorrt_plugin_builtin,
)
from optimize.engines.base import Artifact, AxisRange, BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.errors import StageFailed
from tests.support.tensorrt_plugin.expanded import expanded

ROOT = Path(__file__).parents[2]
FOUND = "PARSER_LIBRARY_IS_FOUND"
needs_parser = pytest.mark.skipif(FOUND not in os.environ, reason="run by the last test, in a process of their own")
"""The parser opens its library by a name that only LD_LIBRARY_PATH, set before the start, can serve."""

LAYER = """
<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch,tokens,128] x) => (float16[batch,tokens,128] y) {
    normed = LayerNormalization<axis = -1>(x, scale, shift)
    merged = MatMul(normed, w_qkv)
    pq, pk, pv = Split<axis = -1>(merged, sizes)
    q = Add(pq, bq)
    k = Add(pk, bk)
    v = Add(pv, bv)
    attended = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v)
    out = MatMul(attended, w_out)
    biased = Add(out, b_out)
    h = Add(x, biased)
    up = MatMul(h, w_up)
    wide = Add(up, b_up)
    bent = Gelu<approximate = "tanh">(wide)
    down = MatMul(bent, w_down)
    narrow = Add(b_down, down)
    y = Add(narrow, h)
}
"""
SIZES = {
    "scale": (128,), "shift": (128,), "w_qkv": (128, 384), "bq": (128,), "bk": (128,), "bv": (128,),
    "w_out": (128, 128), "b_out": (128,), "w_up": (128, 512), "b_up": (512,), "w_down": (512, 128),
    "b_down": (128,),
}  # fmt: skip
ALL = ("products", "attention", "norms")


def layer() -> onnx.ModelProto:
    model = onnx.parser.parse_model(LAYER)
    rng = np.random.default_rng(0)
    for name, shape in SIZES.items():
        array = rng.standard_normal(shape) / (shape[0] ** 0.5 if len(shape) == 2 else 1.0)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([128] * 3), "sizes"))
    return onnx.shape_inference.infer_shapes(model)


def lowered(model: onnx.ModelProto, asked: Sequence[str]) -> tuple[tensorrt_dense.Lowered, onnx.ModelProto]:
    changed = ir.from_proto(model)
    found = tensorrt_dense.lower(changed, asked)
    return found, ir.to_proto(changed)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0].astype(np.float64)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (ALL, {"products": 4, "attention": 1, "norms": 1}),
        (("products",), {"products": 3}),  # The fourth has its bias behind the split.
        (("attention",), {"attention": 1}),
        (("norms",), {"norms": 1}),
    ],
)
def test_what_is_asked_for_is_replaced_by_layers_that_compute_the_same(
    asked: Sequence[str], taken: Mapping[str, int]
) -> None:
    found, model = lowered(layer(), asked)
    assert found.taken == taken
    assert sum(node.op_type == "MatMulNBits" for node in model.graph.node) == sum(taken.values())
    x = np.random.default_rng(1).standard_normal((2, 7, 128)).astype(np.float16)
    wanted, given = run(layer(), x), run(expanded(model), x)
    assert np.linalg.norm(given - wanted) / np.linalg.norm(wanted) < 2**-10  # Roundings to float16 in between.


def test_nothing_is_replaced_unasked_or_twice() -> None:
    unasked, same = lowered(layer(), ())
    assert not unasked.taken
    assert [node.op_type for node in same.graph.node] == [node.op_type for node in layer().graph.node]
    _, model = lowered(layer(), ALL)
    assert not any(lowered(model, ALL)[0].taken.values())


def test_nodes_without_names_keep_constants_of_their_own() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float16[batch,128] x) => (float16[batch,128] y) {
        once = LayerNormalization<axis = -1>(x, scale, shift)
        bent = Gelu(once)
        y = LayerNormalization<axis = -1>(bent, shift, builtin_plugin_0)
    }
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("scale", "shift", "builtin_plugin_0"):
        array = rng.standard_normal(128).astype(np.float16)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model = onnx.shape_inference.infer_shapes(model)
    found, changed = lowered(model, ("norms",))
    assert found.notes() == ["2 norms by the built-in plugin."]
    x = rng.standard_normal((5, 128)).astype(np.float16)
    wanted = run(model, x)
    assert np.linalg.norm(run(expanded(changed), x) - wanted) / np.linalg.norm(wanted) < 2**-10


@pytest.mark.parametrize(
    ("old", "new", "asked", "reason"),
    [
        ("MatMul(h, w_up)", "MatMul(h, h)", "products", "1 product (computed weights)"),
        ("wide = Add(up, b_up)", "wide = Identity(up)", "products", "2 products (no constant bias)"),
        ("(q, k, v)", "(q, k, v, mask)", "attention", "1 attention (a mask, or past keys and values)"),
        ("kv_num_heads = 2", "kv_num_heads = 2, is_causal = 1", "attention", "(causal or capped scores)"),
        ("bq)", "computed)", "attention", "(not three thirds of one product, as fuse.qkv_merge makes them)"),
        ("(x, scale, shift)", "(x, scale)", "norms", "1 norm (no constant scale and bias)"),
        ("axis = -1>(x", "axis = 1>(x", "norms", "1 norm (not over the last of two or three axes)"),
    ],
)
def test_what_is_left_to_tensorrt_is_told_with_the_reason(
    old: str, new: str, asked: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = LAYER.replace(old, new)
    assert text != LAYER
    if "h, h" in new:
        text = text.replace("tokens,128", "128,128")
        monkeypatch.setitem(SIZES, "w_down", (128, 128))
        monkeypatch.setitem(SIZES, "b_up", (128,))
    text = text.replace("{\n", "{\n    computed = Neg(bq)\n    mask = Cast<to = 9>(bv)\n", 1)
    monkeypatch.setitem(globals(), "LAYER", text)
    found, _ = lowered(layer(), (asked,))
    assert any(reason in note for note in found.notes()), found.notes()


def test_a_shared_sum_stays_for_its_other_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    text = LAYER.replace("bent = Gelu", "other = Neg(wide)\n    bent = Gelu")
    text = text.replace("y = Add(narrow, h)", "z = Add(narrow, h) s = ReduceMean(other) y = Add(z, s)")
    monkeypatch.setitem(globals(), "LAYER", text)
    _, model = lowered(layer(), ("products",))
    assert "Gelu" in [node.op_type for node in model.graph.node]
    x = np.random.default_rng(1).standard_normal((2, 7, 128)).astype(np.float16)
    wanted, given = run(layer(), x), run(expanded(model), x)
    assert np.linalg.norm(given - wanted) / np.linalg.norm(wanted) < 2**-10


PRODUCT = {"k": 128, "n": 64, "bits": 4, "block_size": 32, "accuracy_level": 0, "has_zeros": 1}
NORM = {"k": 0, "n": 128, "bits": 4, "block_size": 128, "accuracy_level": 1, "has_zeros": 0}
ATTENTION = {**NORM, "accuracy_level": 0}
X, WEIGHTS, BIAS, Y = [2, 7, 128], [1, 1, 2 * 128 * 64], [1, 64], [2, 7, 64]
QKV, NOTHING, HEADS, SCALES = [2, 7, 384], [1, 1, 64], [2, 64], [2, 128]


@pytest.mark.parametrize(
    "changed",
    [{"accuracy_level": 3}, {"block_size": 16}, {"k": 100}, {"n": 0}, {"k": -64}, {"k": 1 << 20, "n": 1 << 20}],
)
def test_numbers_that_stand_for_no_layer_are_refused(changed: Mapping[str, int]) -> None:
    tensorrt_dense_layer.check_fields(PRODUCT)
    with pytest.raises(ValueError, match="has no layer of these numbers"):
        tensorrt_dense_layer.check_fields(PRODUCT | changed)


@pytest.mark.parametrize(
    ("numbers", "fitting", "wrong"),
    [
        (PRODUCT, [X, WEIGHTS, BIAS, Y, Y], [[2, 7, 64], WEIGHTS, BIAS, Y, Y]),
        (PRODUCT, [X, WEIGHTS, BIAS, Y, Y], [X, [1, 1, 64], BIAS, Y, Y]),
        (PRODUCT, [X, WEIGHTS, BIAS, Y, Y], [X, WEIGHTS, [1, 32], Y, Y]),
        (PRODUCT, [X, WEIGHTS, BIAS, Y, Y], [X, WEIGHTS, BIAS, [1, 1, 64], Y]),
        (PRODUCT, [X, WEIGHTS, BIAS, Y, Y], [X, WEIGHTS, BIAS, Y]),
        (PRODUCT, [X, WEIGHTS, BIAS, Y, Y], [X, WEIGHTS, BIAS, Y, [2, 7, 128]]),
        (PRODUCT | {"has_zeros": 0}, [X, WEIGHTS, BIAS, Y], [X, WEIGHTS, BIAS, Y, Y]),
        (NORM, [X, NOTHING, SCALES, X], [[2, 7, 256], NOTHING, SCALES, [2, 7, 256]]),
        (NORM, [X, NOTHING, SCALES, X], [X, NOTHING, [1, 128], X]),
        (NORM, [X, NOTHING, SCALES, X], [[1 << 24, 128], NOTHING, SCALES, [1 << 24, 128]]),
        (ATTENTION, [QKV, NOTHING, HEADS, X], [X, NOTHING, HEADS, X]),
        (ATTENTION, [QKV, NOTHING, HEADS, X], [QKV, NOTHING, [1, 64], X]),
        (ATTENTION, [QKV, NOTHING, HEADS, X], [[14, 384], NOTHING, HEADS, [14, 128]]),
    ],
)
def test_operands_that_a_layers_numbers_do_not_fit_never_reach_a_kernel(
    numbers: Mapping[str, int], fitting: Sequence[Sequence[int]], wrong: Sequence[Sequence[int]]
) -> None:
    tensorrt_dense_layer.check_shapes(numbers, fitting[:-1], fitting[-1])
    with pytest.raises(ValueError, match="the built-in plugin"):
        tensorrt_dense_layer.check_shapes(numbers, wrong[:-1], wrong[-1])


def test_the_measured_shapes_are_cut_in_the_ways_that_were_fastest() -> None:
    figures = json.loads((ROOT / tensorrt_dense_choice.SOURCE).read_text())
    for name, (n, k, residual) in {
        "up": (3072, 768, False), "down": (768, 3072, True), "qkv": (2304, 768, False), "out": (768, 768, True),
    }.items():  # fmt: skip
        rows = [row for row in figures["products"] if row["product"] == name and not row["transposed"]]
        fastest = min((row for row in rows if "us" in row), key=lambda row: row["us"])["cut"]
        assert dataclasses.asdict(tensorrt_dense_choice.choose(4096, n, k, residual, False, 90)) == fastest
    for kind, cut in (
        ("attention", tensorrt_dense_choice.choose_attention(128, 64)),
        ("norm", tensorrt_dense_choice.choose_norm(768)),
    ):
        assert dataclasses.asdict(cut) == min(figures[kind], key=lambda row: row["us"])["cut"]


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("rows", [1, 64, 65, 1024, 100_000])
def test_every_cut_divides_the_sizes(capability: int, rows: int) -> None:
    for n, k in itertools.product(range(64, 4096, 64), (64, 768, 3072)):
        for residual, transposed in itertools.product((False, True), repeat=2):
            cut = tensorrt_dense_choice.choose(rows, n, k, residual, transposed, capability)
            assert n % (cut.columns + cut.more) == 0
            assert k % cut.depth == 0


def build(folder: Path, tokens: int = 16, **options: Any) -> Artifact:
    ranges = {"batch": AxisRange(1, 2, 4), "tokens": AxisRange(1, 8, tokens)}
    request = BuildRequest(folder / "model.onnx", folder, ranges)
    return TensorRTEngine(TensorRTOptions(plugins=("builtin",), **options)).build(request, lambda *step: None)


@needs_parser
@pytest.mark.tensorrt
def test_every_layer_reaches_the_plugin_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    onnx.save(layer(), tmp_path / "model.onnx")
    before = (tmp_path / "model.onnx").read_bytes()
    made = build(tmp_path, plugin_layers=ALL)
    layers = [entry for entry in made.details["layers"] if entry["kind"] == "custom_layer"]
    assert [entry["precision"] for entry in layers] == ["fp16"] * 6
    assert made.details["summary"] == [
        "4 of 4 matmuls run in fp16 by the built-in plugin.",
        "1 of 1 attentions run in fp16 by the built-in plugin.",
    ]
    assert "4 products, 1 attention, 1 norm by the built-in plugin." in made.details["notes"]
    assert (tmp_path / "model.onnx").read_bytes() == before
    if tensorrt_device.find() is None:
        return
    tensorrt_plugin_builtin.require_runtime()
    with TensorRTEngine().open(made.path) as session:
        for shape in ((3, 9, 128), (1, 1, 128), (4, 16, 128)):
            x = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
            wanted, found = run(layer(), x), session.run({"x": x})["y"].astype(np.float64)
            assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2**-9  # Other orders of sums; GELU.


@needs_parser
@pytest.mark.tensorrt
def test_weights_in_files_of_their_own_are_read_from_there(tmp_path: Path) -> None:
    onnx.save(layer(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    made = build(tmp_path, plugin_layers=ALL)
    assert made.details["counts"]["matmuls"] == {"fp16 by the built-in plugin": 4}


@needs_parser
@pytest.mark.tensorrt
def test_by_itself_the_plugin_takes_none_of_these_layers(tmp_path: Path) -> None:
    onnx.save(layer(), tmp_path / "model.onnx")
    made = build(tmp_path)
    assert made.details["counts"]["matmuls"] == {"fp16": 4}


@pytest.mark.tensorrt
def test_a_model_that_brings_such_a_node_itself_is_refused(tmp_path: Path) -> None:
    onnx.save(lowered(layer(), ALL)[1], tmp_path / "model.onnx")
    with pytest.raises(StageFailed, match="takes 8 bits, this node has 4"):
        build(tmp_path, plugin_layers=ALL)


@needs_parser
@pytest.mark.tensorrt
def test_shapes_beyond_the_kernels_offsets_are_a_sentence(tmp_path: Path) -> None:
    onnx.save(layer(), tmp_path / "model.onnx")
    with pytest.raises(StageFailed, match=r"fewer than 2³¹ elements.*ranges of its axes"):
        build(tmp_path, tokens=1 << 22, plugin_layers=ALL)


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the kernels are in Triton")


@needs_triton
def test_interpreted_kernels_compute_what_torch_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.tensorrt_plugin.interpret_dense", str(tmp_path / "errors.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 18
    assert max(errors.values()) < 2**-11  # y is rounded to float16, which keeps 11 significant bits.


@needs_triton
def test_kernels_compile_without_a_gpu_and_fit_its_shared_memory(tmp_path: Path) -> None:
    limits = {"80": 99 << 10, "90": 227 << 10, "120": 99 << 10}  # CUDA C++ Programming Guide; 8.6 and 8.9 as 12.0.
    command = [sys.executable, "-m", "tests.support.tensorrt_plugin.compiled_dense", *limits]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for capability, limit in limits.items():
        assert len(found[capability]) == 10
        assert max(found[capability].values()) <= limit


@pytest.mark.skipif(FOUND in os.environ, reason="this is that process")
@pytest.mark.tensorrt
def test_builds_with_the_layers_pass_where_the_parser_finds_its_library(tensorrt: ModuleType) -> None:
    libraries = [tensorrt.__path__[0], *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = {**os.environ, FOUND: "1", "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "tensorrt"]
    command += [str(Path(__file__))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "5 passed" in done.stdout
