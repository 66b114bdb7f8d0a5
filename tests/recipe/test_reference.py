"""The committed reference pages are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optimize.recipe.nodes import Place, parse
from optimize.recipe.reading import from_data
from optimize.recipe.reference import PAGES, words

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: python -m optimize.recipe.reference"


def test_the_pages_example_is_a_recipe() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGES["recipe-reference.md"](), re.DOTALL)
    recipe = from_data(parse(example, Place("docs", 1, 1)).plain(), base=Path.cwd())
    assert recipe.name == "model-int8-cpu"


def test_a_page_names_no_folder_of_the_machine() -> None:
    for page in PAGES.values():
        assert str(Path.cwd()) not in page()
        assert "/home/" not in page().replace("/home/ann", "")


def test_types_are_said_in_words() -> None:
    assert words(tuple[str, ...]) == "list of text"
    assert words(dict[str, int] | None) == "mapping to whole number or null"
