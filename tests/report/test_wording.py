from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123"),
        (3.126, "3.13"),
        (999.6, "1,000"),
        (12_345, "12,345"),
        (1.1e-7, "1.10e-7"),
        (-2.5, "−2.50"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
        (None, "—"),
        (0, "0"),
    ],
)
def test_a_number_has_three_significant_digits(value: float | None, text: str) -> None:
    assert wording.number(value) == text


def test_units_follow_the_size() -> None:
    assert wording.size(23_106_832) == "23.1 MB"
    assert wording.size(1_500_000_000) == "1.50 GB"
    assert wording.milliseconds(0.05) == "50.0 µs"
    assert wording.milliseconds(1500) == "1.50 s"
    assert wording.seconds(252) == "4 min 12 s"


@given(st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_likeness_below_one_never_reads_as_one_nor_as_better_than_it_is(value: float) -> None:
    shown = float(wording.likeness(value))
    assert shown < 1
    assert shown <= value + (5.1e-4 if value <= 0.9 else 0)


@given(st.floats(min_value=0.5, max_value=1, exclude_max=True))
def test_a_share_below_all_never_reads_as_all(value: float) -> None:
    assert wording.share(value) != "100.0 %"
    assert wording.share(value) != "100.00 %"


@pytest.mark.parametrize("unit", ["", "ms", "bytes", "dB", "%"])
def test_a_figure_that_misses_its_limit_closely_never_reads_like_the_limit(unit: str) -> None:
    for bound in (1.5, 0.99, 40e6):
        value, limit = wording.against(bound * (1 - 1e-5), bound, unit)
        assert value != limit


def test_text_from_a_model_is_one_line_without_control_characters() -> None:
    assert wording.one_line("a\n\tb\x1b[31m\u202ec") == "a b\\x1b[31m\\u202ec"


def test_nouns_have_plurals() -> None:
    assert wording.count(1, "pass") == "1 pass"
    assert wording.count(2, "pass") == "2 passes"
    assert wording.count(1200, "layer") == "1,200 layers"
