"""The reliability page says what its figures say."""

from __future__ import annotations

from tests.reliability import page


def test_the_page_is_made_from_the_figures_beside_it() -> None:
    assert page.PAGE.read_text() == page.page()
