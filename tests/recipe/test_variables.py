"""`${name}`: typed when alone, text within text, set from the command line, never silently empty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optimize.recipe.reading import load

Faults = Callable[..., list[str]]
Write = Callable[..., Path]


def test_a_value_that_is_nothing_but_a_variable_keeps_its_type(write: Write) -> None:
    text = "variables: {n: 3, c: [original]}\nseed: ${n}\nevaluate: {throughput: {contenders: '${c}'}}\n"
    recipe = load(write(text))
    assert recipe.seed == 3
    assert recipe.evaluate.throughput is not None
    assert recipe.evaluate.throughput.contenders == ("original",)


def test_within_text_the_value_is_written_out(write: Write) -> None:
    recipe = load(write("variables: {n: 3, flag: true}\noutput: out/${n}-${flag}/{name}\n"))
    assert recipe.output == "out/3-true/{name}"


def test_the_command_line_wins_and_is_typed_like_yaml(write: Write) -> None:
    path = write("variables: {n: 3, o: a}\nseed: ${n}\noutput: ${o}\n")
    recipe = load(path, variables={"n": "7", "o": "a: b"})
    assert (recipe.seed, recipe.output) == (7, "a: b")


def test_a_list_or_mapping_is_set_where_the_recipe_has_one_and_is_text_elsewhere(write: Write) -> None:
    path = write("variables: {passes: [clean], note: a}\npasses: ${passes}\noutput: ${note}\n")
    recipe = load(path, variables={"passes": "[clean.names, {quantize.int8: {skip: [b]}}]", "note": "[x, y]"})
    assert [item.name for item in recipe.passes] == ["clean.names", "quantize.int8"]
    assert recipe.passes[1].options["skip"] == ["b"]
    assert recipe.output == "[x, y]"


def test_a_variable_may_use_another(write: Write) -> None:
    assert load(write("variables: {a: x, b: '${a}/y'}\noutput: ${b}\n")).output == "x/y"


def test_a_variable_that_uses_itself_is_refused(faults: Faults) -> None:
    (fault,) = faults("variables: {a: '${b}', b: '${a}'}\noutput: ${a}\n", whole=False)
    assert fault == "recipe.yaml:2:27: output: the variable 'a' uses itself: a → b → a"


def test_an_undefined_variable_gives_one_fault_with_a_suggestion(faults: Faults) -> None:
    assert faults("variables: {samples: 3}\nseed: ${sample}\n", whole=False) == [
        "recipe.yaml:3:7: seed: no variable is called 'sample'; did you mean 'samples'?"
    ]


def test_a_doubled_dollar_is_a_plain_one(write: Write) -> None:
    assert load(write("output: 'a$${b}$c'\n")).output == "a${b}$c"


def test_a_reference_without_an_end_is_refused(faults: Faults) -> None:
    (fault,) = faults("output: 'a${b'\n", whole=False)
    assert "'${' without '}'" in fault


def test_a_list_cannot_be_written_into_text(faults: Faults) -> None:
    (fault,) = faults("variables: {l: [1]}\noutput: a${l}\n", whole=False)
    assert fault.endswith("output: 'l' is a list and cannot be written into text")


def test_setting_what_the_recipe_does_not_have_is_refused(faults: Faults) -> None:
    (fault,) = faults("variables: {samples: 3}\n", variables={"sampels": "4"}, whole=False)
    assert (
        fault == "variables.sampels: --set sampels: the recipe has no variable 'sampels'; did you mean 'samples'?"
    )


def test_a_variable_without_a_value_may_come_from_the_command_line_alone(write: Write) -> None:
    assert load(write("seed: ${n}\n"), variables={"n": "5"}).seed == 5


def test_a_path_from_the_command_line_starts_from_the_working_folder(write: Write, tmp_path: Path) -> None:
    path = write("source: {kind: onnx, path: '${model}'}\n", "recipes/r.yaml")
    recipe = load(path, variables={"model": "here.onnx"})
    assert (recipe.base / recipe.source.model_dump()["path"]).resolve() == tmp_path / "here.onnx"


def test_a_path_that_begins_with_a_variable_starts_where_that_was_written(write: Write, tmp_path: Path) -> None:
    write("variables: {root: data}\n", "lib/base.yaml", whole=True)
    recipe = load(write("extends: ../lib/base.yaml\ncalibration: {data: '${root}/a.npz'}\n", "recipes/r.yaml"))
    assert recipe.calibration is not None
    assert (recipe.base / recipe.calibration.data).resolve() == tmp_path / "lib/data/a.npz"


def doubled(levels: int, value: str) -> str:
    lines = [f"  a{level}: {value.format(below=f'${{a{level - 1}}}')}\n" for level in range(1, levels)]
    return "variables:\n  a0: xxxxxxxxxx\n" + "".join(lines)


def test_text_that_doubles_with_every_variable_is_stopped(faults: Faults) -> None:
    (fault,) = faults(doubled(40, "'{below}{below}'") + "output: ${a39}\n")
    assert fault.endswith("output: more than 1,048,576 characters of variables within variables")


def test_lists_that_double_with_every_variable_are_stopped(faults: Faults) -> None:
    (fault,) = faults(doubled(40, "['{below}', '{below}']") + "evaluate: {arguments: {x: '${a39}'}}\n")
    assert fault.endswith("more than 20,000 uses of variables within variables")


def test_a_chain_of_variables_ends_somewhere(faults: Faults, write: Write) -> None:
    assert load(write(doubled(60, "'{below}'") + "output: ${a59}\n")).output == "xxxxxxxxxx"
    (fault,) = faults(doubled(3000, "'{below}'") + "output: ${a2999}\n")
    assert fault.endswith("output: more than 64 levels of variables within variables")
