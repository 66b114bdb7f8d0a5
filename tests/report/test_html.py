from __future__ import annotations

import html.parser
import re

import pytest

from optimize.facts import PassRecord, PatternFact, Roofline
from optimize.report import html as page
from optimize.report.model import Report
from tests.support import reports

VOID = {"meta", "br", "rect", "line", "circle"}


class Outline(html.parser.HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


ALL = [reports.passing(), reports.failing(), reports.broken(), reports.hostile('<b onload="x">&\'')]


@pytest.mark.parametrize("report", ALL)
def test_the_page_is_whole_and_self_contained(report: Report) -> None:
    outline = Outline(page.render(report))
    names = [tag for tag, _ in outline.tags]
    assert not {"script", "link", "img", "iframe", "object", "form", "b onload"} & set(names)
    for tag, attributes in outline.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), tag
    assert "url(" not in page.render(report)
    policy = next(a for tag, a in outline.tags if tag == "meta" and a.get("http-equiv"))
    assert (policy.get("content") or "").startswith("default-src 'none'")


@pytest.mark.parametrize("report", ALL)
def test_identifiers_are_unique_and_every_label_points_to_one(report: Report) -> None:
    tags = Outline(page.render(report)).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in tags:
        assert attributes.get("aria-labelledby", "gates") in names


def test_hostile_names_are_shown_as_text() -> None:
    hostile = "<script>alert(1)</script>\"'\x1b[31m\u202e{{ 7 * 7 }}"
    text = page.render(reports.hostile(hostile))
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;\\x1b[31m\\u202e{{ 7 * 7 }}" in text


def test_the_verdict_comes_before_everything_else() -> None:
    words = [word.strip() for word in Outline(page.render(reports.failing())).words if word.strip()]
    shown = " ".join(words).replace("\u00a0", " ")
    assert re.search(r"✗ FAIL: 3\.1 × faster, 3\.9 × smaller, cosine 0\.843", shown)
    parts = (
        "FAIL:",
        "2 of 4 gates failed",
        "Where it went",
        "Accuracy, stage by stage",
        "Latency",
        "Passes",
        "layer by layer",
        "Graph, before",
    )
    order = [shown.index(part) for part in parts]
    assert order == sorted(order)


def test_every_part_of_the_report_is_on_the_page() -> None:
    text = page.render(reports.failing())
    report = reports.failing()
    for part in (
        *(gate.gate for gate in report.gates),
        *(stage.name for stage in report.stages),
        *(artifact.sha256 for artifact in report.artifacts),
        *(record.name for record in report.passes),
        "Softmax axis is 1, needs last",
        "SQNR 9.1 dB is under the floor of 12 dB",
        "encoder.layer.*.attention.self.query",
        "com.microsoft.MultiHeadAttention",
        "onnxruntime 1.32.0, exported model",
        "avx512_vnni",
        report.recipe_sha256,
    ):
        assert part in text, part


def test_long_lists_are_cut_with_a_count() -> None:
    record = reports.passing().passes[2]
    record = record.model_copy(update={"skips": record.skips * 1000})
    text = page.render(reports.passing(passes=(record,)))
    assert "and 940 more in report.json" in text
    assert len(text) < 200_000


def test_a_report_of_nothing_but_its_start_still_renders() -> None:
    empty = reports.passing(
        stages=(), exported=None, optimized=None, passes=(), accuracy=(), layers=(), throughput=None,
        artifacts=(), engine={}, gates=(), recipe={}, target={}, source={}, data={},
    )  # fmt: skip
    Outline(page.render(empty))


def test_the_best_possible_latency_stands_beside_the_measured_one() -> None:
    roofline = Roofline(
        operations=2.8e10, bytes_moved=2.4e7, precision="int8", compute_ms=12.0, memory_ms=0.6, floor_ms=12.0,
        bound="compute", sizes={"batch": 8},
    )  # fmt: skip
    text = page.render(reports.passing(roofline=roofline))
    assert "The best this target could do is 12.0 ms, bound by its arithmetic" in text
    assert "the engine takes 3.1 × that" in text
    slower = roofline.model_copy(update={"floor_ms": 48.0, "source": "measured on this machine"})
    text = page.render(reports.passing(roofline=slower))
    assert "The rates measured here would allow 48.0 ms" in text
    assert "this is no floor. Rates: measured on this machine." in text
    assert "The best this target could do" not in text


def test_passes_that_found_nothing_share_one_line() -> None:
    idle = PassRecord(name="fuse.rotary", options={}, seconds=0.1, nodes_before=9, nodes_after=9)
    text = page.render(reports.passing(passes=(*reports.passing().passes, idle)))
    assert "Found nothing to do: fuse.rotary." in text
    assert "<b>fuse.rotary</b>" not in text
    missed = idle.model_copy(update={"patterns": (PatternFact(name="rotary", found=0, expected=2),)})
    assert "<b>fuse.rotary</b>" in page.render(reports.passing(passes=(missed,)))


def test_energy_is_shown_with_its_counter_or_with_the_reason_why_not() -> None:
    text = page.render(reports.passing())
    assert "CPU energy a sample" in text
    assert "45.0 W" in text
    assert "RAPL, whole package" in text
    throughput = reports.passing().throughput
    assert throughput is not None
    bare = tuple(item.model_copy(update={"energy": ()}) for item in throughput.contenders)
    without = throughput.model_copy(update={"contenders": bare, "energy_missing": "CPU: no <counter>"})
    text = page.render(reports.passing(throughput=without))
    assert "energy a sample" not in text
    assert "Energy not measured here. CPU: no &lt;counter&gt;." in text


def test_a_contender_whose_counter_went_away_has_an_empty_cell() -> None:
    throughput = reports.passing().throughput
    assert throughput is not None
    first, *others = throughput.contenders
    partly = throughput.model_copy(update={"contenders": (first.model_copy(update={"energy": ()}), *others)})
    text = page.render(reports.passing(throughput=partly))
    assert "CPU energy a sample" in text
    assert "the counter of the whole device (RAPL" in text


def _luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: int) -> None:
    style = re.search(r"<style>(.*?)</style>", page.render(reports.passing()), re.DOTALL)
    assert style is not None
    found = re.findall(r":root \{(.*?)\}", style.group(1), re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", found))
    for text in ("ink", "soft", "pass", "fail", "error"):
        for ground in ("paper", "card", "faint"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    formats = [name for name in colours if name.startswith("f-")]
    assert len(formats) == 7
    for name in formats:
        assert _contrast(colours["cell"], colours[name]) >= 4.5, name
    for drawn in ("own", "loss", "gain", "other"):
        assert _contrast(colours[drawn], colours["paper"]) >= 3, drawn
