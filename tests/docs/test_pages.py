"""Every code block of the README and the docs does what it says; every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.docs.blocks import ROOT, blocks, execute
from tests.support.tiny import write_model

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.slow
def test_the_tutorial_works_from_top_to_bottom(tmp_path: Path) -> None:
    assert execute(ROOT / "docs" / "tutorial.md", tmp_path) >= 10


@pytest.mark.slow
def test_the_readmes_commands_work(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((64, 64), np.float32))
    assert execute(ROOT / "README.md", tmp_path) >= 2
    assert len(ir.load(tmp_path / "out" / "model.onnx").graph) > 0


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = [
        line for block in blocks(ROOT / "README.md") if block.language == "sh" for line in block.body.splitlines()
    ]
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_readmes_report_is_cut_from_the_report_of_a_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    excerpt = readme.split("<!-- report -->\n")[1].split("<!-- /report -->")[0].strip()
    report = (ROOT / "docs" / "reports" / "minilm-int8-cpu.md").read_text(encoding="utf-8")
    assert excerpt
    assert excerpt in report


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_says_what_it_shows(path: Path) -> None:
    from optimize.recipe.reading import load

    assert load(path).name == path.stem
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Shows:", "Runs on:", "Came out:"):
        assert any(word in line for line in header), f"{path.name}: no '{word}' in its header"
