"""Strict YAML: what is taken, what is refused, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.errors import RecipeError, UsageError
from optimize.recipe.nodes import MAXIMUM_BYTES, Place, parse, read

HERE = Place("r.yaml", 1, 1, Path("."))


def faults(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(text, HERE)
    return [str(fault) for fault in caught.value.faults]


def test_scalars_are_read_as_yaml_1_2_reads_them() -> None:
    text = "a: 1e-3\nb: no\nc: 2020-01-01\nd: 0x1F\ne: ~\nf: '3'\ng: 1_000\nh: .inf\ni: true\nj: 0o17\nk: 1.50"
    assert parse(text, HERE).plain() == {
        "a": 0.001,
        "b": "no",
        "c": "2020-01-01",
        "d": 31,
        "e": None,
        "f": "3",
        "g": 1000,
        "h": float("inf"),
        "i": True,
        "j": 15,
        "k": 1.5,
    }


def test_a_value_knows_its_line_and_column() -> None:
    tree = parse("a:\n  - x\n  - {b: 2}\n", HERE)
    item = tree.mapping["a"].value[1]  # type: ignore[index]
    assert (item.mapping["b"].place.line, item.mapping["b"].place.column) == (3, 9)
    assert (item.keys["b"].line, item.keys["b"].column) == (3, 6)


def test_a_duplicate_key_is_refused_with_both_lines() -> None:
    assert faults("a: 1\nb: {c: 1, c: 2}\na: 2") == [
        "r.yaml:2:11: b.c: written twice; first on line 2",
        "r.yaml:3:1: a: written twice; first on line 1",
    ]


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:os.system [echo]",
        "!!python/name:os.system x",
        "!mine {a: 1}",
        "!!binary aGk=",
        "!!set {a}",
    ],
)
def test_a_tag_constructs_nothing(tagged: str) -> None:
    (fault,) = faults(f"x: {tagged}")
    assert fault.startswith("r.yaml:1:4: x: the tag '!")


def test_a_merge_key_is_refused_in_favour_of_extends() -> None:
    assert faults("a: &a {x: 1}\nb:\n  <<: *a\n") == [
        "r.yaml:3:3: b: the merge key '<<' is not taken; use 'extends'"
    ]


def test_an_alias_is_taken() -> None:
    assert parse("a: &a [1, 2]\nb: *a", HERE).plain() == {"a": [1, 2], "b": [1, 2]}


def test_aliases_that_multiply_are_stopped() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 20000 values" in faults("\n".join(lines))[0]


def test_an_alias_within_itself_is_stopped() -> None:
    assert "nested more than 64 levels deep" in faults("a: &a [*a]")[0]


def test_a_file_nested_without_end_is_stopped() -> None:
    assert "nested more than 64 levels deep" in faults("[" * 50_000)[0]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1", "r.yaml:1:6"),
        ("a: b: c", "r.yaml:1:5"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1"),
        ("a: *nope", "r.yaml:1:4"),
        ('a: "\\U00110000"', "r.yaml:1:1"),
        ('a: "\\UFFFFFFFF"', "r.yaml:1:1"),
    ],
)
def test_broken_yaml_is_one_fault_at_its_place(text: str, place: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith(f"{place}: not valid YAML: ")


def test_a_directive_is_refused_because_it_changes_how_values_are_read() -> None:
    assert "directive" in faults("%YAML 1.1\n---\na: no\n")[0]


def test_a_list_as_key_is_refused() -> None:
    assert faults("? [a, b]\n: 1\n") == ["r.yaml:1:3: a key must be text"]


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert parse("# nothing\n", HERE).plain() == {}


def test_files_that_are_no_recipe_are_refused_by_name(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a" * (MAXIMUM_BYTES + 1))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: 1\nb: \xff\xfe\n")
    with pytest.raises(UsageError, match="not a recipe: it has more than 1,048,576 bytes"):
        read(large, "large.yaml")
    with pytest.raises(UsageError, match="not a recipe: Is a directory"):
        read(tmp_path, "folder")
    with pytest.raises(UsageError, match="not a recipe: it is no plain file"):
        read(Path("/dev/zero"), "zero")
    with pytest.raises(UsageError, match=r"none.yaml: cannot be read: No such file"):
        read(tmp_path / "none.yaml", "none.yaml")
    with pytest.raises(RecipeError, match=r"binary.yaml:2:1: not UTF-8 text"):
        read(binary, "binary.yaml")


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_text("name: x\n", encoding="utf-8-sig")
    assert read(path, "bom.yaml").plain() == {"name": "x"}


@pytest.mark.parametrize("digits", ["1" * 6000, "-" + "1" * 2000, "0b" + "1" * 20_000, "0o" + "7" * 20_000])
def test_a_whole_number_without_end_is_refused(digits: str) -> None:
    assert faults(f"seed: {digits}\n") == ["r.yaml:1:7: seed: a whole number of more than 4,096 bits"]
    assert parse(f"seed: {2**4000}\n", HERE).plain() == {"seed": 2**4000}
