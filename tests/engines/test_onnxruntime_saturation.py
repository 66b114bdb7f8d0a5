"""8-bit products are exact on processors whose kernels sum them in saturating 16 bits, and on all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from optimize.engines import onnxruntime_saturation
from optimize.engines.base import BuildRequest
from optimize.engines.graph_runner import runner
from optimize.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeOptions
from optimize.engines.onnxruntime_saturation import EXACT, exact_products, runs_wrong_as_written, saturates
from optimize.engines.onnxruntime_session import open_onnx
from optimize.errors import StageFailed, UsageError
from optimize.targets.loading import cpu_instructions

Array = np.ndarray[Any, np.dtype[Any]]

INTEGER = "y = com.microsoft.MatMulIntegerToFloat(x, w, s, s)"
QDQ = "d = DequantizeLinear(x, s, z) e = DequantizeLinear(w, s, v) y = MatMul(d, e)"
RNG = np.random.default_rng(0)
X = RNG.integers(200, 256, (4, 256)).astype(np.uint8)


def save(folder: Path, body: str, highest: int) -> tuple[Path, Array]:
    """A product with weights close to `highest` in a file, and its exact result."""
    weight = RNG.integers(highest - 20, highest + 1, (256, 32)).astype(np.int8)
    held = {"w": weight, "s": np.float32(0.01), "z": np.uint8(0), "v": np.int8(0)}
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]> '
        f"g (uint8[4, 256] x) => (float[4, 32] y) {{ {body} }}"
    )
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in held.items()
        if any(name in node.input for node in model.graph.node)
    )
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path, (X.astype(np.int64) @ weight.astype(np.int64)) * 1e-4


def built(path: Path, folder: Path) -> Array:
    engine = OnnxRuntimeEngine(OnnxRuntimeOptions())
    artifact = engine.build(BuildRequest(path, folder, sample={"x": X}), lambda what, done, total: None)
    assert artifact.details["relative_l2_to_unoptimised"] < 1e-5
    with engine.open(artifact.path) as session:
        return session.run({"x": X})["y"]


def optimised(path: Path, folder: Path) -> Array:
    with open_onnx(path) as session:
        return session.run({"x": X})["y"]


def by_passes(path: Path, folder: Path) -> Array:
    return np.asarray(runner()(ir.load(path), {"x": X})["y"])


def elsewhere(path: Path, folder: Path) -> Array:
    """Built on a processor that does not saturate, opened here."""
    options = OnnxRuntimeOptions(session_options={"session.x64quantprecision": "0"}, verify=False)
    engine = OnnxRuntimeEngine(options)
    artifact = engine.build(BuildRequest(path, folder), lambda what, done, total: None)
    manifest = folder / "engine.json"
    manifest.write_text(manifest.read_text().replace('"is_widened": true', '"is_widened": false'))
    with OnnxRuntimeEngine().open(artifact.path) as session:
        return session.run({"x": X})["y"]


def as_written(path: Path, folder: Path) -> Array:
    with open_onnx(path, optimized=False) as session:
        return session.run({"x": X})["y"]


@pytest.mark.parametrize("run", [built, elsewhere, optimised, as_written, by_passes])
@pytest.mark.parametrize("body", [INTEGER, QDQ], ids=["integer operators", "Q/DQ"])
def test_products_of_large_weights_are_exact(run: Callable[[Path, Path], Array], body: str, tmp_path: Path) -> None:
    path, exact = save(tmp_path, body, 127)
    engine = tmp_path / "engine"
    engine.mkdir()
    np.testing.assert_allclose(run(path, engine), exact, rtol=1e-5)


@pytest.mark.parametrize("level", ["basic", "disable"])
def test_a_level_that_cannot_be_exact_here_says_so(level: Any, tmp_path: Path) -> None:
    path, exact = save(tmp_path, INTEGER, 127)
    (folder := tmp_path / "engine").mkdir()
    engine = OnnxRuntimeEngine(OnnxRuntimeOptions(graph_optimization=level))
    request = BuildRequest(path, folder, sample={"x": X})
    if saturates():
        with pytest.raises(StageFailed, match="saturating 16 bits") as raised:
            engine.build(request, lambda what, done, total: None)
        assert "weight_bits: 7" in str(raised.value.hint)
        return
    with engine.open(engine.build(request, lambda what, done, total: None).path) as session:
        np.testing.assert_allclose(session.run({"x": X})["y"], exact, rtol=1e-5)


def test_what_this_processor_does_is_what_its_instruction_sets_say() -> None:
    known = cpu_instructions()
    if "avx2" not in known:
        pytest.skip("no x86 processor with AVX2")
    assert saturates() == (not {"avx_vnni", "avx512_vnni"} & set(known))


@pytest.mark.parametrize("body", [INTEGER, QDQ], ids=["integer operators", "Q/DQ"])
@pytest.mark.parametrize("here", [True, False], ids=["saturates", "exact as it is"])
def test_the_slower_exact_kernel_is_asked_for_only_where_the_fast_one_saturates(
    here: bool, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_saturation, "saturates", lambda: here)
    assert exact_products() == (EXACT if here else {})
    path, _ = save(tmp_path, body, 127)
    (folder := tmp_path / "engine").mkdir()
    engine = OnnxRuntimeEngine(OnnxRuntimeOptions(verify=False))
    artifact = engine.build(BuildRequest(path, folder), lambda what, done, total: None)
    kinds = {item.data_type for item in onnx.load(artifact.path).graph.initializer if len(item.dims) == 2}
    assert kinds == {onnx.TensorProto.UINT8 if here else onnx.TensorProto.INT8}


def test_weights_in_seven_bits_keep_the_faster_kernel(tmp_path: Path) -> None:
    path, _ = save(tmp_path, INTEGER, 64)
    engine = tmp_path / "engine"
    engine.mkdir()
    artifact = OnnxRuntimeEngine(OnnxRuntimeOptions()).build(
        BuildRequest(path, engine, sample={"x": X}), lambda what, done, total: None
    )
    kinds = {item.data_type for item in onnx.load(artifact.path).graph.initializer if len(item.dims) == 2}
    assert kinds == {onnx.TensorProto.INT8}


def test_only_integer_operators_are_wrong_as_written_in_branches_and_functions_too(tmp_path: Path) -> None:
    inner = (
        "y = If(c) <then_branch = g () => (int32[4, 32] u) { u = MatMulInteger(x, w) },"
        " else_branch = h () => (int32[4, 32] z) { z = Identity(o) }>"
    )
    texts = {
        "branch": "g (uint8[4, 256] x, int8[256, 32] w, bool c, int32[4, 32] o) => (int32[4, 32] y) { "
        + inner
        + " }",
        "function": "g (uint8[4, 256] x, int8[256, 32] w) => (int32[4, 32] y) { y = local.f(x, w) }"
        ' <domain: "local", opset_import: ["" : 20]> f (a, b) => (r) { r = MatMulInteger(a, b) }',
    }
    for text in texts.values():
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20, "local" : 1]> {text}')
        assert runs_wrong_as_written(model) == saturates()
    assert runs_wrong_as_written(save(tmp_path, INTEGER, 127)[0]) == saturates()
    assert not runs_wrong_as_written(save(tmp_path, QDQ, 127)[0])


@pytest.mark.parametrize("content", [None, b"no model"])
def test_no_model_is_said_by_opening_it(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    assert not runs_wrong_as_written(path)
    with pytest.raises(UsageError, match=r"model\.onnx"):
        open_onnx(path, optimized=False)
