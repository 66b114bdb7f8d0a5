from __future__ import annotations

import pytest

from optimize.cli.convert import _name_of, _passes
from optimize.recipe.model import Recipe

STEM = ["surgery.stem_space_to_depth", {"surgery.pad_channels": {"multiple": 16}}]


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_a_16_bit_engine_of_tensorrt_gets_a_stem_that_fills_its_matrix_units(form: str) -> None:
    passes, _ = _passes([form], "tensorrt", True, None, calibrated=False)
    assert passes == ["clean", {f"cast.{form}": {}}, "fuse", *STEM]


@pytest.mark.parametrize(
    ("formats", "engine", "fuse"),
    [(["fp16"], "onnxruntime", True), (["fp8", "fp16"], "tensorrt", True), (["fp16"], "tensorrt", False)],
)
def test_other_engines_formats_and_graphs_left_unfused_keep_their_stem(
    formats: list[str], engine: str, fuse: bool
) -> None:
    passes, _ = _passes(formats, engine, fuse, None, calibrated=False)
    assert not any("surgery" in str(one) for one in passes)


@pytest.mark.parametrize(("engine", "calibrated"), [("onnxruntime", True), ("tensorrt", False)])
def test_int8_with_data_or_for_tensorrt_is_calibrated_after_its_outliers_are_split(
    engine: str, calibrated: bool
) -> None:
    passes, _ = _passes(["int8"], engine, True, ["head"], calibrated=calibrated)
    *_, split, quantized = passes
    assert split == {"surgery.split_outliers": {}}
    assert quantized["quantize.int8"]["activations"] == "static"
    assert quantized["quantize.int8"]["skip"] == ["head"]


def test_int8_without_data_takes_dynamic_ranges() -> None:
    passes, _ = _passes(["int8"], "onnxruntime", True, None, calibrated=False)
    assert passes == ["clean", "fuse", {"quantize.int8": {}}]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models/my model (2).onnx", "my-model-2"),
        ("package/module.py:build", "module"),
        ("../.hidden.onnx", "hidden"),
        ("模型.onnx", "model"),
    ],
)
def test_every_file_gives_a_name_that_a_run_may_have(model: str, name: str) -> None:
    found = _name_of(model)
    assert found == name
    source = {"kind": "onnx", "path": "x.onnx"}
    assert Recipe.model_validate({"name": found, "source": source, "target": "cpu"}).name == name
