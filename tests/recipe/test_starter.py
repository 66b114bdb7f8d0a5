"""A starter is a recipe that loads as it is."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from optimize.errors import UsageError
from optimize.recipe.presets import available
from optimize.recipe.reading import load
from optimize.recipe.starter import starter

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[batch, tokens] ids, float[batch, 3] x) => (float[batch, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(MODEL), "my model.onnx")
    return Path("my model.onnx")


@pytest.mark.parametrize("preset", available())
def test_a_presets_starter_loads_without_a_fault(preset: str, model: Path) -> None:
    Path("r.yaml").write_text(starter(str(model), preset, Path.cwd()))
    recipe = load(Path("r.yaml"))
    assert recipe.name == f"my-model-{preset}"
    assert set(recipe.source.ranges) == {"batch", "tokens"}


def test_the_models_inputs_and_outputs_are_told_in_comments(model: Path) -> None:
    text = starter(str(model), None, Path.cwd())
    for line in (
        "# input ids: int64 (batch, tokens)",
        "# input x: float (batch, 3)",
        "# output y: float (batch, 3)",
    ):
        assert f"  {line}\n" in text
    assert "w:" not in text


def test_the_models_path_starts_from_where_the_recipe_will_lie(model: Path, tmp_path: Path) -> None:
    Path("recipes").mkdir()
    Path("recipes/r.yaml").write_text(starter(str(model), None, Path("recipes")))
    recipe = load(Path("recipes/r.yaml"))
    assert (recipe.base / recipe.source.model_dump()["path"]).resolve() == tmp_path / "my model.onnx"


def test_every_kind_of_source_has_its_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("make.py").write_text("")
    Path("m.pt2").write_text("")
    Path("folder").mkdir()
    Path("folder/config.json").write_text("{}")
    sources = {
        "make.py:build": "torch",
        "pkg.mod:build": "torch",
        "m.pt2": "exported_program",
        "folder": "huggingface",
    }
    for model, kind in sources.items():
        Path("r.yaml").write_text(starter(model, None, Path.cwd()))
        assert load(Path("r.yaml")).source.kind == kind


def test_a_preset_needs_no_model(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(starter(None, "int8-cpu", tmp_path))
    assert load(path).name == "model-int8-cpu"


@pytest.mark.parametrize(
    ("model", "preset", "message"),
    [
        (None, "int8-cp", "did you mean 'int8-cpu'"),
        ("none.onnx", None, "none.onnx: no such file"),
        ("none.py:build", None, "none.py: no such file"),
        ("damaged.onnx", None, "not an ONNX model"),
        ("text.txt", None, "not a model this knows"),
        (".", None, "has no config.json"),
    ],
)
def test_what_is_no_model_is_said_in_a_sentence(
    model: str | None, preset: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.onnx").write_bytes(b"\x08\xff\xff nonsense")
    Path("text.txt").write_text("x")
    with pytest.raises(UsageError, match=message):
        starter(model, preset, tmp_path)
