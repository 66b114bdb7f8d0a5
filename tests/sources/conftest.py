"""A written user file with factories, shared by the tests of sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

HEADER = "import torch\nfrom torch import nn\n"


@pytest.fixture
def user_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write `model.py` with a body below two import lines; return its folder."""

    def write(body: str) -> Path:
        (tmp_path / "model.py").write_text(HEADER + body)
        return tmp_path

    return write
