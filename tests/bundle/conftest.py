"""The server that tests of served models talk to."""

from __future__ import annotations

import os

import pytest

from tests.support.triton.assemble import CannotAssemble, assemble


@pytest.fixture(scope="session")
def triton() -> None:
    """Skips where no Triton server can be had, except in CI (`CI` set), where that fails."""
    try:
        assemble()
    except CannotAssemble as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Triton server: {error}")
