"""The built-in plugin through the product: recipe to plan, manifests, and what is missing as one sentence."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from optimize.engines import tensorrt_device, tensorrt_library, tensorrt_plan, tensorrt_plugin_builtin
from optimize.engines.base import AxisRange, BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.engines.tensorrt_plugin_choice import Rowwise, Tiled, choose, workspace_bytes
from optimize.errors import MISSING, STAGE_FAILED, BackendMissing, StageFailed
from passes.base import PassContext
from passes.quantize.int8_blocks import QuantizeInt8Blocks
from passes.target import Target
from tests.support import tiny

ROOT = Path(__file__).parents[2]
H200 = Target(name="t", title="T", device="cuda", dialect="tensorrt")
BUILTIN = TensorRTOptions(plugins=("builtin",))
RECIPE = (
    tiny.RECIPE.replace("target: cpu", "target: h200")
    .replace("  - ${passes}", "  - clean\n  - cast.fp16\n  - quantize.int8_blocks")
    .replace("engine: {kind: onnxruntime}", "engine: {kind: tensorrt, plugins: [builtin]}")
)
LAYER = """
<ir_version: 10, opset_import: ["" : 20]>
g (TYPE[n,256] x) => (TYPE[n,64] y) { [product] y = Gemm(x, w, b) }
"""


def written(folder: Path, kind: type = np.float16, target: Target = H200) -> Path:
    """A product with a bias, its weight in 8-bit blocks as the pass writes it for `target`."""
    model = onnx.parser.parse_model(LAYER.replace("TYPE", "float16" if kind is np.float16 else "float"))
    rng = np.random.default_rng(0)
    for name, shape in (("w", (256, 64)), ("b", (64,))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(kind), name))
    changed = ir.from_proto(model)
    QuantizeInt8Blocks().apply(changed, PassContext(target=target))
    ir.save(changed, folder / "model.onnx")
    return folder / "model.onnx"


def build(folder: Path, model: Path, options: TensorRTOptions) -> None:
    TensorRTEngine(options).build(BuildRequest(model, folder, {"n": AxisRange(1, 4, 8)}), lambda *step: None)


def optimize(*words: str, cwd: Path, libraries: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    inherited = [entry for entry in (str(ROOT), os.environ.get("PYTHONPATH")) if entry]
    found = [*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(inherited), "OPTIMIZE_STORE": str(cwd / "store"),
        "LD_LIBRARY_PATH": os.pathsep.join(found),
    }  # fmt: skip
    command = [sys.executable, "-m", "optimize", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.tensorrt
def test_a_recipe_with_the_plugin_becomes_a_plan_that_says_so(tmp_path: Path, tensorrt: ModuleType) -> None:
    recipe = tiny.write_recipe(tmp_path, RECIPE)
    folder = str(Path(str(tensorrt.__file__)).parent)
    done = optimize("run", recipe.name, "--until", "build", "-o", "out", cwd=tmp_path, libraries=[folder])
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/engine/engine.plan.json").read_text())
    assert manifest["plugins"] == ["builtin"]
    assert manifest["size_bytes"] == (tmp_path / "out/engine/engine.plan").stat().st_size
    assert "2 of 2 matmuls run in int8 weights, fp16" in (tmp_path / "out/report.json").read_text()
    told = optimize("inspect", "out/engine/engine.plan", cwd=tmp_path)
    assert "builtin" in told.stdout
    if tensorrt_device.find() is None:
        refused = optimize("bench", "out/engine/engine.plan", cwd=tmp_path)
        assert refused.returncode == MISSING
        assert "Traceback" not in refused.stderr


@pytest.mark.tensorrt
def test_without_the_plugin_the_build_names_the_node_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(
        StageFailed, match=r"node 'product' \(MatMulNBits\).*`engine: \{plugins: \[builtin\]\}`"
    ) as caught:
        build(tmp_path, written(tmp_path), TensorRTOptions())
    assert caught.value.exit_code == STAGE_FAILED


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("kind", "dialect", "said"),
    [
        (np.float32, "tensorrt", "takes float16, its scales are float"),
        (np.float16, "onnxruntime", "takes no zero points and no bias"),
    ],
)
def test_what_the_plugin_does_not_serve_is_named(tmp_path: Path, kind: type, dialect: str, said: str) -> None:
    model = written(tmp_path, kind, H200.model_copy(update={"dialect": dialect}))
    with pytest.raises(StageFailed, match=said):
        build(tmp_path, model, BUILTIN)


@pytest.mark.tensorrt
def test_four_bits_are_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    model = onnx.load(path)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "bits":
            attribute.i = 4
    onnx.save(model, path)
    with pytest.raises(StageFailed, match="takes 8 bits, this node has 4"):
        build(tmp_path, path, BUILTIN)


@pytest.mark.tensorrt
def test_the_parsers_missing_library_is_a_sentence_and_no_abort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tensorrt_library.load()
    if library.flavour.parser_opens is None:
        pytest.skip(f"{library.title} needs no library by another name")

    def absent(name: str, *args: object, **more: object) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(tensorrt_plugin_builtin.ctypes, "CDLL", absent)
    with pytest.raises(BackendMissing, match=r"needs libtensorrt_rtx\.so .* `export LD_LIBRARY_PATH=/") as caught:
        build(tmp_path, written(tmp_path), BUILTIN)
    assert caught.value.exit_code == MISSING


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_what_the_kernels_need_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(
        BackendMissing, match=rf"runs with {package}, .*model-optimize\[tensorrt-plugin\]"
    ) as caught:
        tensorrt_plugin_builtin.require_runtime()
    assert caught.value.exit_code == MISSING


def test_data_only_takes_the_products_own_plugin_and_refuses_a_library(tmp_path: Path) -> None:
    tiny.write_recipe(tmp_path, RECIPE)
    mixed = RECIPE.replace("[builtin]", "[builtin, ./evil.so]")
    for text, code, said in ((RECIPE, 0, ""), (mixed, 2, "engine.plugins: ./evil.so")):
        (tmp_path / "tiny.yaml").write_text(text)
        done = optimize("run", "tiny.yaml", "--data-only", "--until", "passes", "-o", "out", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert said in done.stderr


def test_one_row_and_sixteen_run_in_the_ways_that_were_measured_fastest() -> None:
    figures = json.loads((ROOT / "docs/gpu/2026-11-25-int8-plugin.json").read_text())
    names = {
        Rowwise: lambda cut: f"gemv bn{cut.channels} bk{cut.blocks}x w{cut.warps} s{cut.stages} each",
        Tiled: lambda cut: f"dot bn{cut.channels} k/{cut.split} w{cut.warps} s{cut.stages}",
    }
    for rows in (1, 16):
        for label, (n, k) in {"up": (14336, 4096), "down": (4096, 14336)}.items():
            cut = choose(rows, n, k // 128, 128)
            assert names[type(cut)](cut) == figures[f"raw-{rows}"]["best"][label]


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("n", [64, 4096, 14336])
@pytest.mark.parametrize("blocks", [1, 2, 7, 112])
def test_the_workspace_holds_the_partial_sums_of_every_number_of_rows(block: int, n: int, blocks: int) -> None:
    for most in (1, 16, 40, 64, 1000):
        given = workspace_bytes(most, n, blocks, block)
        for rows in range(1, most + 1):
            cut = choose(rows, n, blocks, block)
            if isinstance(cut, Tiled) and cut.split > 1:
                assert given >= 4 * cut.split * rows * n
                assert blocks % cut.split == 0
        assert given <= 4 * 4 * 64 * n


@pytest.mark.tensorrt
@pytest.mark.skipif(tensorrt_device.find() is None, reason="no GPU here")
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_plan_with_the_plugin_computes_the_product_with_and_without_a_cuda_graph(
    tmp_path: Path, rows: int
) -> None:
    tensorrt_plugin_builtin.require_runtime()
    model = written(tmp_path)
    build(tmp_path, model, BUILTIN)
    x = np.random.default_rng(rows).standard_normal((rows, 256)).astype(np.float16)
    parts = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in onnx.load(model).graph.initializer
    }
    weights = ((parts["w.codes"] - 128) * parts["w.scales"][:, :, None]).reshape(64, 256)
    wanted = x.astype(np.float64) @ weights.T + parts["b"]
    with TensorRTEngine().open(tmp_path / tensorrt_plan.PLAN) as session:
        first = session.run({"x": x})["y"]
        lane = session.lane
        replay = lane.replayed(cuda_graph=True)
        replay()
        lane.download()
        lane.stream.synchronize()
        for found in (first, lane.results()["y"]):
            error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
            assert error < 2**-10  # Two roundings to float16: the product and the sum.
