"""The page in a real browser: draws, loads nothing, fits narrow screens, prints, is used by keyboard."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from optimize.report import html
from tests.support import reports

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
MEASURE = """
<script>
addEventListener("load", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  const tabbed = [...document.querySelectorAll("a[href], summary, [tabindex='0']")];
  const facts = {
    overflow: document.documentElement.scrollWidth - innerWidth,
    requests: performance.getEntriesByType("resource").length,
    chart: Math.round(document.querySelector(".chart").getBoundingClientRect().height),
    bars: [...document.querySelectorAll(".bar rect:last-child")].filter((r) => r.getBoundingClientRect().width > 0).length,
    paper: getComputedStyle(document.body).backgroundColor,
    focusable: tabbed.filter((e) => { e.focus(); return document.activeElement === e; }).length,
    tabbed: tabbed.length,
  };
  document.title = JSON.stringify(facts);
});
</script>
"""  # noqa: E501

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


def chromium(profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def measure(tmp_path: Path, *arguments: str) -> dict[str, object]:
    """Open the page, with a script of ours beside it that the page's own policy would not allow."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html.render(reports.failing()))
    page = tmp_path / "measured.html"
    page.write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    shown = chromium(tmp_path / "profile", *arguments, "--dump-dom", page.as_uri())
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None
    facts: dict[str, object] = json.loads(entities.unescape(title.group(1)))
    return facts


def test_it_draws_its_charts_and_asks_for_nothing(tmp_path: Path) -> None:
    facts = measure(tmp_path, "--window-size=1280,1000")
    assert facts["requests"] == 0
    assert facts["bars"] == 5, "one bar a stage"
    assert isinstance(facts["chart"], int)
    assert facts["chart"] > 150
    assert facts["overflow"] == 0
    assert facts["paper"] == "rgb(251, 251, 249)"


def test_everything_folded_or_scrolled_can_be_reached_by_keyboard(tmp_path: Path) -> None:
    facts = measure(tmp_path)
    assert facts["focusable"] == facts["tabbed"]
    assert isinstance(facts["tabbed"], int)
    assert facts["tabbed"] > 10


def test_a_narrow_screen_never_scrolls_the_page_sideways(tmp_path: Path) -> None:
    # Headless windows are at least 500 wide; a device scale factor of 1.25 makes that 400.
    facts = measure(tmp_path, "--window-size=500,900", "--force-device-scale-factor=1.25")
    assert facts["overflow"] == 0


def test_a_dark_preference_gives_a_dark_page(tmp_path: Path) -> None:
    facts = measure(tmp_path, "--blink-settings=preferredColorScheme=0")
    assert facts["paper"] == "rgb(20, 23, 26)"


def test_the_pages_own_policy_lets_no_script_run(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = html.render(reports.passing())
    page.write_text(text.replace("</body>", "<script>document.title = 'ran'</script></body>"))
    shown = chromium(tmp_path / "profile", "--dump-dom", page.as_uri())
    assert "<title>PASS: minilm-int8-cpu</title>" in shown


def test_a_print_holds_what_is_folded_on_screen(tmp_path: Path) -> None:
    record = reports.passing().passes[2]
    record = record.model_copy(update={"skips": record.skips * 60})
    pages = []
    for passes in ((record, record), ()):
        page, paper = tmp_path / "page.html", tmp_path / "page.pdf"
        page.write_text(html.render(reports.failing(passes=passes)), encoding="utf-8")
        chromium(tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri())
        pages.append(len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())))
    assert pages[0] >= pages[1] + 2 >= 3, "two folded lists of sixty lines take paper"
