"""`extends:` merges files, points at the file that said it, and keeps paths meaningful."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimize.errors import RecipeError
from optimize.recipe.reading import load

Write = Callable[..., Path]


def test_a_recipe_is_laid_over_its_bases_key_by_key(write: Write) -> None:
    write("calibration: {data: a.npz, samples: 3}\nseed: 1\n", "one.yaml", whole=True)
    write("calibration: {samples: 4, batch: 2}\ngates: {size.max: 1MB, speedup.min: 2}\n", "two.yaml", whole=True)
    recipe = load(write("extends: [one.yaml, two.yaml]\ngates: {speedup: {min: 3}, size.max: null}\n"))
    assert recipe.calibration is not None
    assert (recipe.calibration.data, recipe.calibration.samples, recipe.calibration.batch) == ("a.npz", 4, 2)
    assert recipe.seed == 1
    assert recipe.gates == {"speedup.min": 3}


def test_lists_are_replaced_whole(write: Write) -> None:
    write("evaluate: {throughput: {contenders: [original, exported, optimized]}}\n", "one.yaml", whole=True)
    recipe = load(write("extends: one.yaml\nevaluate: {throughput: {contenders: [original]}}\n"))
    assert recipe.evaluate.throughput is not None
    assert recipe.evaluate.throughput.contenders == ("original",)


def test_options_may_be_added_to_an_engine_that_the_base_only_names(write: Write) -> None:
    write("engine: onnxruntime\n", "one.yaml", whole=True)
    recipe = load(write("extends: one.yaml\nengine: {threads: 2}\n"))
    assert (recipe.engine["kind"], recipe.engine["threads"]) == ("onnxruntime", 2)


def test_null_takes_a_section_away(write: Write) -> None:
    write("calibration: {data: a.npz}\n", "one.yaml", whole=True)
    assert load(write("extends: one.yaml\ncalibration: null\n")).calibration is None


def test_another_kind_replaces_the_mapping_instead_of_mixing_with_it(write: Write) -> None:
    write("source: {kind: torch, factory: m:f, opset: 20}\n", "one.yaml")
    recipe = load(write("extends: one.yaml\nsource: {kind: onnx, path: m.onnx}\n"))
    assert recipe.source.model_dump() == {"kind": "onnx", "path": "m.onnx", "ranges": {}}


def test_a_path_starts_from_the_file_that_says_it(write: Write, tmp_path: Path) -> None:
    write("source: {kind: torch, factory: make.py:f, files: [w.bin]}\n", "lib/deep/base.yaml")
    text = "extends: ../lib/deep/base.yaml\ncalibration: {data: mine.npz}\nevaluate: {metric: 'pkg.mod:f'}\n"
    recipe = load(write(text, "recipes/r.yaml", whole=True))
    assert recipe.base == tmp_path / "recipes"
    assert recipe.source.model_dump()["factory"] == "../lib/deep/make.py:f"
    assert recipe.source.model_dump()["files"] == ("../lib/deep/w.bin",)
    assert recipe.calibration is not None
    assert recipe.calibration.data == "mine.npz"
    assert (recipe.evaluate.metric, recipe.evaluate.data) == ("pkg.mod:f", "random")


def test_base_moves_where_the_paths_of_a_file_start(write: Write, tmp_path: Path) -> None:
    recipe = load(write("base: ../work\nprevious: report.json\n", "recipes/r.yaml"))
    assert recipe.base.resolve() == tmp_path / "work"
    assert recipe.previous == "report.json"


@pytest.mark.parametrize("name", ["recipe.base", '"a\\0b"', "."])
def test_a_folder_that_no_readable_file_names_is_a_fault(write: Write, name: str) -> None:
    with pytest.raises(RecipeError, match="there is no readable file"):
        load(write(f"base: {{file: {name}}}\n"))


@pytest.mark.parametrize("value", ["null", "3", "[a]", "{b: c}"])
def test_what_cannot_name_a_file_that_names_the_folder_is_a_fault(write: Write, value: str) -> None:
    with pytest.raises(RecipeError, match=r"base\.file: expected a file's name, got"):
        load(write(f"base: {{file: {value}}}\n"))


def test_an_endless_file_is_not_read_for_the_folder(write: Write) -> None:
    with pytest.raises(RecipeError, match="there is no readable file '/dev/zero'"):
        load(write("base: {file: /dev/zero}\n"))


def test_a_tower_of_recipes_ends_somewhere(write: Write) -> None:
    for floor in range(200):
        write(f"extends: r{floor + 1}.yaml\n", f"r{floor}.yaml", whole=True)
    write("", "r200.yaml")
    assert load(write("extends: r140.yaml\n")).source.kind == "onnx"
    with pytest.raises(RecipeError, match="more than 64 recipes on top of each other"):
        load(Path("r0.yaml"))


def test_a_name_that_no_file_can_have_is_a_fault(write: Write) -> None:
    with pytest.raises(RecipeError, match="extends: no file can be called"):
        load(write('extends: "a\\0b"\n'))


def test_an_absolute_path_stays(write: Write) -> None:
    write("calibration: {data: /data/a.npz}\n", "lib/one.yaml", whole=True)
    recipe = load(write("extends: lib/one.yaml\n"))
    assert recipe.calibration is not None
    assert recipe.calibration.data == "/data/a.npz"


def test_a_fault_points_at_the_file_that_said_it(write: Write) -> None:
    write("\nseed: -1\n", "lib/one.yaml", whole=True)
    with pytest.raises(RecipeError) as caught:
        load(write("extends: lib/one.yaml\nsede: 1\n"))
    assert [str(fault) for fault in caught.value.faults] == [
        "lib/one.yaml:2:7: seed: expected at least 0, got -1",
        "recipe.yaml:3:1: sede: unknown key; did you mean 'seed'?",
    ]


def test_a_circle_is_named_in_full(write: Write) -> None:
    write("extends: two.yaml\n", "one.yaml")
    write("extends: one.yaml\n", "two.yaml")
    with pytest.raises(
        RecipeError, match=r"two.yaml:2:10: extends: extends itself: one.yaml → two.yaml → one.yaml"
    ):
        load(Path("one.yaml"))


def test_two_bases_may_share_one(write: Write) -> None:
    write("seed: 3\n", "root.yaml", whole=True)
    write("extends: root.yaml\n", "one.yaml", whole=True)
    write("extends: root.yaml\noutput: o\n", "two.yaml", whole=True)
    recipe = load(write("extends: [one.yaml, two.yaml]\n"))
    assert (recipe.seed, recipe.output) == (3, "o")


def test_a_base_that_does_not_exist_is_a_fault_where_it_is_named(write: Write) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:2:10: extends: .*nope.yaml.*No such file"):
        load(write("extends: nope.yaml\n"))


@pytest.mark.parametrize("value", ["3", "[{a: 1}]", "'${x}'"])
def test_extends_takes_file_names_only(value: str, write: Write) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:2:.*: extends"):
        load(write(f"extends: {value}\n"))


def test_a_gate_written_flat_and_nested_in_one_file_is_a_duplicate(write: Write) -> None:
    with pytest.raises(RecipeError, match=r"gates.size.max: written twice; first on line 2"):
        load(write("gates: {size.max: 1MB, size: {max: 2MB}}\n"))
