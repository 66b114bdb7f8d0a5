from __future__ import annotations

import pytest

from optimize.facts import PassRecord, SkipFact
from optimize.report import markdown
from optimize.report.model import Report
from tests.support import reports


def test_the_verdict_comes_first_and_every_gate_is_there() -> None:
    text = markdown.render(reports.failing())
    assert text.startswith("## ❌ FAIL: 3.1 × faster, 3.9 × smaller, cosine 0.843\n")
    for gate in reports.failing().gates:
        assert f"`{gate.gate}`" in text
    assert text.index("`accuracy.cosine.min`") < text.index("`speedup.min`"), "missed gates come first"
    assert "| `quantize.int8` | 0.580 | 4.73 dB | 0.832 |" in text
    assert "\n  - quantize.int8: {skip: [encoder.layer.5.output.dense]}\n" in text


@pytest.mark.parametrize("report", [reports.passing(), reports.failing(), reports.broken()])
def test_it_is_short_enough_for_a_pull_request_comment(report: Report) -> None:
    assert len(markdown.render(report)) < 4000


def test_a_huge_report_stays_within_what_a_comment_may_hold() -> None:
    skips = tuple(SkipFact(node=f"n{index}", reason="x" * 500) for index in range(5000))
    passes = tuple(
        PassRecord(name=f"p{index}", options={}, seconds=1, nodes_before=1, nodes_after=1, skips=skips)
        for index in range(200)
    )
    accuracy = tuple(reports.accuracy(f"s{index}", 0.01) for index in range(200))
    text = markdown.render(reports.passing(passes=passes, accuracy=accuracy))
    assert len(text) < 65_000, "GitHub takes 65,536 characters"
    assert "`s199`" in text


def test_tables_keep_their_columns_whatever_the_names_are() -> None:
    for line in markdown.render(reports.hostile("a|b`c``d\ny |")).splitlines():
        if line.startswith("| ") and "---" not in line:
            bare = line.replace("\\|", "")
            assert bare.count("|") in (4, 5, 6), line


def test_names_cannot_become_markup_html_mentions_or_links() -> None:
    hostile = "<img src=x>@bob #12 [a](http://b.c) www.d.e *f* _g_ \x1b[31m"
    shown = markdown.text(hostile)
    assert "<" not in shown
    assert "@" not in shown
    assert "http://" not in shown
    assert "www." not in shown
    assert "\x1b" not in shown
    assert "&#35;12" in shown
    assert shown.count("\\*") == 2
    assert shown.count("\\[") == 2


def test_a_code_span_is_fenced_by_more_backticks_than_it_holds() -> None:
    assert markdown.code("a`b") == "``a`b``"
    assert markdown.code("`") == "`` ` ``"
    assert markdown.code("x\n``y") == "```x ``y```"
    assert markdown.code("") == ""


def test_passes_that_found_nothing_share_one_line() -> None:
    idle = PassRecord(name="fuse.rotary", options={}, seconds=0.1, nodes_before=9, nodes_after=9)
    text = markdown.render(reports.passing(passes=(*reports.passing().passes, idle)))
    assert "Found nothing to do: `fuse.rotary`." in text
    assert "| `fuse.rotary` |" not in text
