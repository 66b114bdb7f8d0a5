"""Every command on the pages about reports and bundles runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from optimize.cli import bundle, report
from tests.support import runs

DOCS = Path(__file__).parents[2] / "docs"
RANGES = {"ranges": {"batch": {"minimum": 1, "typical": 4, "maximum": 8}}}


@pytest.mark.parametrize("page", ["ci.md", "bundles.md"])
def test_the_pages_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs.finish(tmp_path / "out" / "minilm-int8-cpu", source=RANGES)
    app = typer.Typer()
    app.add_typer(report.app, name="report")
    app.add_typer(bundle.app, name="bundle")
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        assert words.pop(0) == "optimize"
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, f"{command}: {result.output}"


@pytest.mark.parametrize("page", ["ci.md", "bundles.md"])
def test_the_pages_files_exist(page: str) -> None:
    for path in re.findall(r"`(examples/[^`]+)`", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS.parent / path).is_file(), path
