"""Puts a run's report into the docs and its start into the README: `python -m tests.docs.renew out/NAME`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.docs.blocks import ROOT

BEGIN, END = "<!-- report -->\n", "<!-- /report -->"


def renew(run: Path) -> None:
    """Copy `report.md` of a run's folder and cut the README's excerpt from it.

    Args:
        run: The output folder of a run of `minilm-int8-cpu`.
    """
    page = ROOT / "docs" / "reports" / "minilm-int8-cpu.md"
    page.parent.mkdir(exist_ok=True)
    shutil.copyfile(run / "report.md", page)
    excerpt = page.read_text(encoding="utf-8").split("<details>")[0].strip()
    readme = ROOT / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{head}{BEGIN}{excerpt}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
