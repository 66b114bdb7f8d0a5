"""A pattern under `skip` that matches nothing is told, once, and no other; so is a format that no layer took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimize.pipeline.stages import transform
from passes import registry
from passes.base import Pass
from tests.support.calibration import Batches
from tests.support.runner import CPU, TENSORRT, context

TEXT = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[n, 32] x, bool c) => (float[n, 32] y) {
        [product] h = MatMul(x, w)
        [act] r = Relu(h)
        [choice] y = If(c) <
            then_branch = t () => (float[n, 32] a) { [inner] a = Neg(r) },
            else_branch = e () => (float[n, 32] b) { [other] b = own.twice(r) }
        >
    }
    <domain: "own", opset_import: ["" : 21]>
    twice (v) => (s) { [within] s = Add(v, v) }"""
PLAIN = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 32] x) => (float[n, 32] y) { [product] h = MatMul(x, w)  [act] y = Relu(h) }"""
FEEDS = {"x": np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32), "c": np.array(True)}
SKIPPING = [name for name in registry.names() if "skip" in registry.find(name).model_fields]


def model(text: str) -> ir.Model:
    """The graph with its weight and its product's module."""
    made = ir.from_onnx_text(text)
    product = next(node for node in made.graph if node.op_type == "MatMul")
    product.metadata_props["pkg.model_optimize.module"] = "encoder.layer"
    weight = product.inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(np.full((32, 32), 0.1, np.float32), name="w")
    weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((32, 32))
    made.graph.register_initializer(weight)
    return made


def notes(name: str, **options: Any) -> list[str]:
    """What applying the pass told about its patterns."""
    made = model(TEXT)
    applied = registry.find(name)(**options)
    target = next((each for each in (CPU, TENSORRT) if applied.check(each) is None), TENSORRT)
    record = transform.apply_pass(applied, name, made, context(target, calibration=Batches((FEEDS,))))
    return [note for note in record.notes if note.startswith("skip: ")]


def without_tools(name: str) -> bool:
    return name not in ("quantize.modelopt", "quantize.modelopt_torch")


@pytest.mark.parametrize("name", filter(without_tools, SKIPPING))
def test_every_pass_tells_the_one_pattern_that_matches_nothing(name: str) -> None:
    assert notes(name, skip=("nothing.here", "encoder", "nothing.here")) == [
        "skip: 'nothing.here' matches no node, module or operator at this step."
    ]


@pytest.mark.parametrize(
    "pattern", ["product", "enc*", "encoder.layer", "Relu", "act", "inner", "within", "output:r"]
)
def test_a_pattern_counts_as_matching_whatever_node_it_matches(pattern: str) -> None:
    assert notes("quantize.int8", skip=(pattern,)) == []


def test_the_nearest_name_is_offered() -> None:
    (note,) = notes("quantize.int8", skip=("encoder.layers",))
    assert note.endswith("at this step; did you mean 'encoder.layer'?")


def test_a_search_tells_the_patterns_of_its_formats_alone() -> None:
    found: Pass = registry.find("quantize.auto")(
        formats=("int8", "int4"), options={"int8": {"skip": ["Relu", "gone"]}, "int4": {"skip": ["lost"]}}
    )
    assert found.patterns_to_skip() == ("Relu", "gone", "lost")


def test_a_run_prints_it_and_keeps_it_in_the_report(tmp_path: Path) -> None:
    ir.save(model(PLAIN), tmp_path / "m.onnx")
    words = ("convert", "m.onnx", "--int8", "--skip", "nothing.here", "--skip", "encoder", "-o", "out")
    done = subprocess.run(
        [sys.executable, "-m", "optimize", *words, "--store", "store"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    told = "quantize.int8, skip: 'nothing.here' matches no node, module or operator at this step."
    assert done.stdout.count("matches no node") == 1, done.stdout + done.stderr
    assert told in json.loads((tmp_path / "out" / "report.json").read_text())["notes"]


@pytest.mark.parametrize("words", [("--int8", "--skip", "product"), ("--int8",)], ids=["nothing", "all"])
def test_a_run_that_quantized_nothing_says_so(words: tuple[str, ...], tmp_path: Path) -> None:
    ir.save(model(PLAIN), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "optimize", "convert", "m.onnx", *words, "-o", "out", "--store", "store"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    told = "quantize.int8 quantized nothing: 1 left alone, the first 'encoder.layer': listed under skip."
    notes_said = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert (told in notes_said) == ("--skip" in words), done.stdout + done.stderr
