"""`passes:` and `engine:`: options checked against the code that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from optimize.recipe.explaining import validate
from optimize.recipe.faults import Faults
from optimize.recipe.nodes import Place, parse
from optimize.recipe.reading import load
from optimize.recipe.rebasing import rebase
from passes.clean import DEFAULT

FaultsOf = Callable[..., list[str]]
Write = Callable[..., Path]
FOLD = ".clean.fold_constants"
INT8 = ".quantize.int8"


def test_a_rooms_name_stands_for_its_default_passes(write: Write) -> None:
    recipe = load(write("passes: [clean]\n"))
    assert [item.name for item in recipe.passes] == [f"clean.{stem}" for stem in DEFAULT]


def test_options_are_written_out_with_their_defaults(write: Write) -> None:
    recipe = load(write("passes:\n  - clean.fold_constants: {limit_bytes: 10}\n  - clean.names:\n"))
    assert recipe.passes[0].options == {"expect": {}, "limit_bytes": 10, "limit_elements": 512 * 512}
    assert recipe.passes[1].options == {"expect": {}}


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ("clean.fold_constant", ": no pass is called 'clean.fold_constant'; did you mean 'clean.fold_constants'?"),
        ("fold_constants", ": no pass is called 'fold_constants'; did you mean 'clean.fold_constants'?"),
        (
            "{clean.fold_constants: {limit_byte: 1}}",
            f"{FOLD}.limit_byte: unknown key; did you mean 'limit_bytes'?",
        ),
        (
            "{clean.fold_constants: {limit_bytes: '1'}}",
            f"{FOLD}.limit_bytes: expected a whole number, got '1'",
        ),
        (
            "{clean.fold_constants: {limit_bytes: true}}",
            f"{FOLD}.limit_bytes: expected a whole number, got true",
        ),
        (
            "{clean.fold_constants: {limit_bytes: -1}}",
            f"{FOLD}.limit_bytes: expected at least 0, got -1",
        ),
        ("{clean.fold_constants: 3}", ".clean.fold_constants: expected a mapping of options, got 3"),
        ("{clean.opset: {}}", ".clean.opset.least: missing"),
        ("clean.opset", ".clean.opset.least: missing"),
        ("{clean.drop_outputs: {names: y}}", ".clean.drop_outputs.names: expected a list, got 'y'"),
        ("{quantize.int8: {ops: 3}}", ".quantize.int8.ops: expected a list, got 3"),
        (
            "{quantize.int8: {ops: [Matmul]}}",
            f"{INT8}.ops[0]: expected 'MatMul', 'Gemm', 'Conv' or 'ConvTranspose', got 'Matmul'; "
            "did you mean 'MatMul'?",
        ),
        (
            "{quantize.int8: {ops: [MatMul, Add]}}",
            f"{INT8}.ops[1]: expected 'MatMul', 'Gemm', 'Conv' or 'ConvTranspose', got 'Add'",
        ),
        (
            "{quantize.modelopt: {ops: [Matmul]}}",
            ".quantize.modelopt.ops: 'Matmul' is no ONNX operator; did you mean 'MatMul'?",
        ),
        ("{quantize.int8: {smooth: much}}", ".quantize.int8.smooth: expected a number, got 'much'"),
        (
            "{quantize.int8: {activations: dinamic}}",
            f"{INT8}.activations: expected 'dynamic' or 'static', got 'dinamic'; did you mean 'dynamic'?",
        ),
        ("{clean: {limit_bytes: 1}}", ": 'clean' stands for several passes and takes no options; name one: "),
        (
            "{clean.names: {expect: {value: many}}}",
            ".clean.names.expect.value: expected a whole number, got 'many'",
        ),
    ],
)
def test_a_wrong_item_is_one_fault(item: str, fault: str, faults: FaultsOf) -> None:
    (found,) = faults(f"passes:\n  - {item}\n", whole=False)
    place, _, text = found.partition(": passes[0]")
    assert text.startswith(fault)
    assert place.startswith("recipe.yaml:3:")


def test_a_room_without_a_default_asks_for_names(faults: FaultsOf) -> None:
    (found,) = faults("passes: [quantize]\n", whole=False)
    assert found.endswith("passes[0]: 'quantize' has no default list; name its passes one by one")


def test_a_pass_that_needs_calibration_data_asks_for_it_once(faults: FaultsOf) -> None:
    text = "passes:\n  - quantize.int8: {activations: static}\n"
    (found,) = faults(text, whole=False)
    assert found == (
        "recipe.yaml:3:5: passes[0].quantize.int8: quantize.int8 needs calibration data; add a calibration: section"
    )
    assert faults(text + "calibration: {data: c.npz}\n", whole=False) == []
    (found,) = faults(text + "calibration: {dato: c.npz}\n", whole=False)
    assert "calibration.dato: unknown key; did you mean 'data'?" in found


def test_a_pass_that_the_target_cannot_serve_says_what_to_use(faults: FaultsOf) -> None:
    (found,) = faults("passes:\n  - clean.opset: {least: 25}\n", whole=False)
    assert found.startswith("recipe.yaml:3:5: passes[0].clean.opset: opset 25 is beyond what ")


def test_an_option_of_a_union_keeps_the_members_own_faults_apart() -> None:
    class Inner(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        size: int

    class Outer(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        either: Inner | int

    noted = Faults()
    assert validate(Outer, parse("either: {size: x}\n", Place("r.yaml", 1, 1)), ("o",), noted) is None
    with pytest.raises(Exception, match=r"^r.yaml:1:16: o.either.size: expected a whole number, got 'x'$"):
        noted.raise_any()


def test_options_that_are_paths_start_from_the_file_that_says_them(tmp_path: Path) -> None:
    class Options(pydantic.BaseModel):
        file: Path
        files: tuple[Path, ...]
        marked: str = pydantic.Field(json_schema_extra={"format": "path"})
        plain: str

    text = "file: a.bin\nfiles: [b.bin, /c.bin]\nmarked: d.bin\nplain: e.bin\n"
    node = parse(text, Place("r.yaml", 1, 1, tmp_path / "lib"))
    assert rebase(Options, node, tmp_path / "recipes").plain() == {
        "file": "../lib/a.bin",
        "files": ["../lib/b.bin", "/c.bin"],
        "marked": "../lib/d.bin",
        "plain": "e.bin",
    }


def test_an_engines_options_are_its_own(write: Write, faults: FaultsOf) -> None:
    recipe = load(write("target: h200\nengine: {kind: tensorrt, workspace: 4GiB}\n"))
    assert recipe.engine["workspace"] == 4 * 2**30
    (found,) = faults("target: h200\nengine: {kind: tensorrt, threads: 2}\n", whole=False)
    assert found.startswith("recipe.yaml:3:26: engine.threads: unknown key")
