"""A run's needs are said before it starts, and what cannot fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from optimize.errors import STAGE_FAILED
from optimize.pipeline import estimate, preflight, room, weights_ahead
from optimize.recipe import reading
from optimize.targets import loading
from passes import registry, saving
from passes.base import PassContext
from tests.support import tiny

WEIGHT_ONLY = [
    ("quantize.int4", {"block_size": 32}, "cpu", "onnxruntime"),
    ("quantize.int4", {"block_size": 64, "algorithm": "rtn"}, "h200", "tensorrt"),
    ("quantize.int4_planes", {}, "h200", "tensorrt"),
    ("quantize.fp8", {"activations": "none"}, "h200", "tensorrt"),
    ("quantize.fp4", {"activations": "none", "algorithm": "rtn"}, "b200", "tensorrt"),
]


def layers(dtype: ir.DataType) -> ir.Model:
    """Three products in a row, the last a Gemm with transB, with numbers in their weights."""
    rng = np.random.default_rng(0)
    shapes = {"a": (256, 512), "b": (512, 256), "c": (128, 256)}
    held = {
        name: ir.Value(
            name=name,
            const_value=ir.tensor(rng.normal(size=shape).astype(dtype.numpy()), name=name),
            shape=ir.Shape(shape),
            type=ir.TensorType(dtype),
        )
        for name, shape in shapes.items()
    }
    x = ir.val("x", dtype, ["rows", 256])
    first = ir.node("MatMul", [x, held["a"]], name="first")
    second = ir.node("MatMul", [first.outputs[0], held["b"]], name="second")
    third = ir.node("Gemm", [second.outputs[0], held["c"]], {"transB": 1}, name="third")
    y = third.outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["rows", 128])
    graph = ir.Graph(
        [x], [y], nodes=[first, second, third], initializers=list(held.values()), opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(("name", "options", "target", "engine"), WEIGHT_ONLY)
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.FLOAT])
def test_bytes_foreseen_are_the_bytes_a_pass_leaves(
    name: str, options: dict[str, object], target: str, engine: str, dtype: ir.DataType
) -> None:
    model, device = layers(dtype), loading.load(target, engine)
    built = registry.find(name)(**options)
    ahead = weights_ahead.look(weights_ahead.kinds_of(model), [(name, built)], device)
    built.apply(model, PassContext(target=device))
    left = [value.const_value for value in model.graph.initializers.values()]
    made = sum(tensor.nbytes for tensor in left if tensor is not None)
    assert ahead.unknown == ()
    assert made < 0.7 * ahead.bytes_before
    assert ahead.bytes_after == pytest.approx(made, rel=0.01)  # scales that layers share are counted once each
    assert ahead.seconds > 0


def test_a_table_whose_pass_must_see_numbers_is_foreseen_from_a_small_one() -> None:
    rng = np.random.default_rng(0)
    table = ir.Value(
        name="table",
        const_value=ir.tensor(rng.normal(size=(5000, 384)).astype(np.float32), name="table"),
        shape=ir.Shape((5000, 384)),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    ids = ir.val("ids", ir.DataType.INT64, ["rows"])
    node = ir.node("Gather", [table, ids], name="lookup")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", 384])
    graph = ir.Graph([ids], [y], nodes=[node], initializers=[table], opset_imports={"": 21}, name="g")
    model, target = ir.Model(graph, ir_version=10), loading.load("cpu", "onnxruntime")
    built = registry.find("quantize.embeddings")()
    ahead = weights_ahead.look(weights_ahead.kinds_of(model), [("quantize.embeddings", built)], target)
    built.apply(model, PassContext(target=target))
    made = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert ahead.bytes_after == pytest.approx(made, rel=0.02)
    assert made < 0.3 * ahead.bytes_before


def test_looking_ahead_reads_no_weight() -> None:
    model = layers(ir.DataType.FLOAT16)

    def refuse() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.LazyTensor(refuse, dtype=tensor.dtype, shape=tensor.shape, name=value.name)
    built = registry.find("quantize.int4")(block_size=32)
    ahead = weights_ahead.look(
        weights_ahead.kinds_of(model), [("quantize.int4", built)], loading.load("cpu", "onnxruntime")
    )
    assert ahead.bytes_after < ahead.bytes_before / 2


def test_what_a_calibrating_pass_needs_is_said_to_be_unknown() -> None:
    built = registry.find("quantize.int4")(algorithm="gptq")
    kinds = weights_ahead.kinds_of(layers(ir.DataType.FLOAT16))
    ahead = weights_ahead.look(kinds, [("quantize.int4", built)], loading.load("cpu", "onnxruntime"))
    assert ahead.unknown == ("quantize.int4",)
    assert ahead.bytes_after == ahead.bytes_before


RECIPE = """\
schema_version: 1
name: sized
source: {kind: onnx, path: model.onnx}
target: cpu
engine: {kind: onnxruntime}
passes: [clean, {quantize.int4: {block_size: 32, algorithm: rtn}}]
"""


@pytest.fixture
def sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose model is large enough to be estimated (the limit is lowered, not the model grown)."""
    monkeypatch.setattr(estimate, "FROM_BYTES", 1 << 18)
    saving.save(layers(ir.DataType.FLOAT16), tmp_path / "model.onnx", inline_bytes=0)
    (tmp_path / "sized.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sized.yaml"


def test_the_plan_says_time_memory_and_disk_per_step(sized: Path, tmp_path: Path) -> None:
    plan = preflight.plan(reading.load(sized), tmp_path / "store", until="passes")
    assert plan.problems == ()
    assert plan.estimate is not None
    assert [step.step for step in plan.estimate.steps] == ["digests", "capture", "passes", "output"]
    passes = plan.estimate.of("passes")
    assert passes is not None
    assert passes.seconds
    assert passes.peak_anonymous_bytes
    assert passes.written_bytes < 0.4 * plan.estimate.weight_bytes
    assert any("passes:" in line and "written" in line for line in plan.steps)


def test_steps_that_run_the_model_are_floors_of_its_weights(sized: Path, tmp_path: Path) -> None:
    found = preflight.plan(reading.load(sized), tmp_path / "store").estimate
    assert found is not None
    floors = {step.step: step for step in found.steps if step.is_floor}
    assert floors["reference"].peak_anonymous_bytes == found.weight_bytes
    assert floors["build baseline"].written_bytes == found.weight_bytes
    assert floors["build"].written_bytes < found.weight_bytes


@pytest.mark.parametrize(
    ("attribute", "few", "words"),
    [
        ("memory_bytes", lambda: 50_000_000, "of memory, 50 MB are free"),
        ("disk_bytes", lambda folder: 100_000, "has 0 MB free; the run writes"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_runs(
    sized: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, few: Callable[..., int], words: str
) -> None:
    from optimize.cli.main import app

    monkeypatch.setattr(room, attribute, few)
    plan = preflight.plan(reading.load(sized), sized.parent / "store", until="passes")
    assert [problem.exit_code for problem in plan.problems] == [STAGE_FAILED]
    assert words in str(plan.problems[0])
    result = CliRunner().invoke(app, ["check", str(sized), "--until", "passes", "--store", "store"])
    assert result.exit_code != 0
    assert not (sized.parent / "store").exists()


def test_check_prints_the_estimate_as_json(sized: Path) -> None:
    from optimize.cli.main import app

    words = ["check", str(sized), "--until", "passes", "--json", "--store", "store"]
    result = CliRunner().invoke(app, words)
    shown = json.loads(result.stdout)
    assert {step["step"] for step in shown["estimate"]} == {"digests", "capture", "passes", "output"}


def test_a_small_model_is_not_measured(tmp_path: Path) -> None:
    plan = preflight.plan(reading.load(tiny.write_recipe(tmp_path)), tmp_path / "store")
    assert plan.estimate is None


def test_a_containers_limit_counts_with_its_cache_given_up(tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("900000\n")
    (tmp_path / "stat").write_text("anon 400000\ninactive_file 300000\nactive_file 200000\n")
    assert room._of_group(tmp_path / "max", tmp_path / "current", tmp_path / "stat") == 600_000
    (tmp_path / "max").write_text("max\n")
    assert room._of_group(tmp_path / "max", tmp_path / "current", tmp_path / "stat") is None
