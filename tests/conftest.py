"""Fixtures that every room's tests share."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.support.tensorrt_rtx.assemble import CannotAssemble, assemble


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `tensorrt` gets the library whether or not it names the fixture."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("tensorrt"):
            item.fixturenames.insert(0, "tensorrt")


@pytest.fixture(scope="session")
def tensorrt() -> Iterator[ModuleType]:
    """The installed TensorRT, or one assembled from wheels; child processes inherit it by PYTHONPATH.

    Where it cannot be had the test is skipped, except in CI (`CI` set), where it fails.
    """
    for name in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(name):
            yield importlib.import_module(name)
            return
    try:
        folder = str(assemble())
    except CannotAssemble as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no TensorRT library: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        inherited = [entry for entry in (os.environ.get("PYTHONPATH"),) if entry]
        patch.setenv("PYTHONPATH", os.pathsep.join([folder, *inherited]))
        yield importlib.import_module("tensorrt_rtx")
