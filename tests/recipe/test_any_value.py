"""Whatever stands at any key, reading ends with a recipe or with faults at their places, never otherwise."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.errors import RecipeError
from optimize.recipe.reading import load

WHOLE: dict[str, Any] = {
    "schema_version": 1,
    "name": "r",
    "variables": {"n": 3},
    "source": {
        "kind": "torch",
        "factory": "m.py:f",
        "arguments": {"a": 1},
        "ranges": {"batch": {"minimum": 1, "typical": 2, "maximum": 4}},
        "files": ["a.bin"],
    },
    "target": "cpu",
    "passes": ["clean.names", {"clean.fold_constants": {"limit_bytes": 5, "expect": {"folded": 1}}}],
    "engine": {"kind": "onnxruntime", "threads": 2, "session_options": {"a": "b"}},
    "calibration": {"data": "c.npz", "samples": 3, "batch": 2},
    "evaluate": {
        "data": "e.npz",
        "kind": "embedding",
        "metric": "m.py:g",
        "throughput": {"shapes": {"batch": 2}, "runs": 9, "seconds": 1.5, "contenders": ["original", "optimized"]},
    },
    "gates": {"accuracy": {"cosine": {"min": 0.9}}, "size.max": "1MB"},
    "previous": "report.json",
    "seed": 1,
    "output": "out",
}
VALUES: list[Any] = [None, True, -1, 1.5, "", "${n}", "${no}", [None], {}, {"": {}}]


def paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key's path."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def replaced(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The whole recipe with another value at `path`."""
    data: dict[str, Any] = json.loads(json.dumps(WHOLE))
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def read(path: Path, text: str) -> list[str]:
    """The faults; none when it loads. JSON is YAML, but for escapes of surrogates."""
    path.write_text(text, encoding="utf-8")
    try:
        load(path)
        return []
    except RecipeError as error:
        found = error.faults
    assert found
    assert all(fault.file and fault.line and fault.column for fault in found)
    return [str(fault) for fault in found]


@pytest.mark.parametrize("path", paths(WHOLE), ids=lambda path: ".".join(map(str, path)))
def test_any_value_at_any_key(path: tuple[Any, ...], tmp_path: Path) -> None:
    for value in VALUES:
        found = read(tmp_path / "r.yaml", json.dumps(replaced(path, value), indent=1))
        assert len(found) == len({text.partition(": ")[2].partition(": ")[0] for text in found}), "one fault a key"


def test_the_whole_recipe_has_no_fault(tmp_path: Path) -> None:
    assert read(tmp_path / "r.yaml", json.dumps(WHOLE)) == []


@settings(deadline=None, max_examples=30)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_at_all(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder) / "r.yaml", text)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_recipe_with_a_piece_torn_out(data: st.DataObject) -> None:
    text = json.dumps(WHOLE, indent=1)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder) / "r.yaml", text[:start] + text[end:])
