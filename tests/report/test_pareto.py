"""The Pareto front: who is on it, how it is drawn, and where a run's own report shows it."""

from __future__ import annotations

import re

from optimize.report import front, html, pareto
from optimize.sweep_facts import Point, Sweep
from tests.support import reports


def point(
    label: str, cosine: float | None, latency: float | None, size: int | None, verdict: str = "PASS"
) -> Point:
    return Point(label=label, verdict=verdict, cosine=cosine, latency_ms=latency, size_bytes=size)


def on_front(*points: Point) -> set[str]:
    return {item.label for item in front.with_front(points) if item.is_on_front}


def test_a_run_that_misses_a_gate_is_not_worth_having_unless_all_miss() -> None:
    good, missed = point("good", 0.99, 10, 100), point("missed", 0.9, 1, 10, "FAIL")
    assert on_front(good, missed) == {"good"}
    assert on_front(missed, point("error", 1.0, 0.5, 1, "ERROR")) == {"missed"}


def test_a_missing_figure_is_the_worst_and_equals_stay_together() -> None:
    assert on_front(point("a", 0.99, None, 100), point("b", 0.99, 5, 100)) == {"b"}
    assert on_front(point("a", 0.99, 5, 100), point("b", 0.99, 5, 100)) == {"a", "b"}


def test_a_run_of_its_own_shows_its_contenders() -> None:
    points = {item.label: item for item in front.points_of(reports.passing())}
    assert list(points) == ["original", "exported", "optimized"]
    assert points["original"].cosine == 1
    assert points["original"].size_bytes is None
    assert points["optimized"].is_on_front
    assert points["exported"].is_on_front, "more accurate than the optimised, smaller than the original"
    assert front.points_of(reports.passing(throughput=None)) == ()


def test_a_run_of_a_sweep_shows_the_others_and_points_itself_out() -> None:
    sweep = Sweep(label="b", points=(point("a", 0.999, 50, 9_000), point("b", 0.99, 30, 8_000)))
    text = html.render(reports.passing(sweep=sweep))
    section = text[text.index('id="pareto"') : text.index('id="gates"')]
    assert "the 2 runs of its sweep" in section
    assert section.count('class="ring"') == 1
    ringed = re.search(r'class="ring".*?<text[^>]*>([^<]*)', section, re.DOTALL)
    assert ringed is not None
    assert ringed.group(1) == "b"
    assert "exported" in section


def test_faster_is_drawn_left_and_closer_is_drawn_lower() -> None:
    drawn = pareto.plot(front.with_front((point("slow", 0.999, 50, 9), point("fast", 0.9, 10, 9))))
    places = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'class="point" cx="([\d.]+)" cy="([\d.]+)".*?<text[^>]*>(\w+)', drawn)
    }
    assert places["fast"][0] < places["slow"][0]
    assert places["slow"][1] > places["fast"][1], "SVG counts downwards"


def test_names_cannot_leave_their_place() -> None:
    evil = "</svg><script>alert(1)</script>|`x`\n"
    points = front.with_front((point(evil, 0.99, 5, 100), point("b", 0.9, 6, 100)))
    for text in (str(pareto.plot(points)), pareto.page(points), pareto.markdown(points)):
        assert "<script>" not in text
    assert len(pareto.markdown(points).splitlines()) == 4
    assert len(pareto.table(points).splitlines()) == 3


def test_nothing_to_plot_is_said() -> None:
    assert pareto.plot(()) == ""
    assert "No run has both" in pareto.page((point("a", None, None, None, "ERROR"),))
