"""The code in docs/tensorrt.md runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ruamel.yaml

from optimize.engines.tensorrt_options import TensorRTOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tensorrt.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.mark.tensorrt
def test_the_python_example_builds_and_prints_what_it_says() -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", block("python")],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['1 of 1 attentions run in fp16.']")


@pytest.mark.tensorrt
@pytest.mark.skipif(sys.platform != "linux", reason="the wheels are for Linux")
def test_the_shell_example_prints_the_librarys_version() -> None:
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([folder, os.environ["PATH"]])}
    done = subprocess.run(
        ["bash", "-ec", block("bash")], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[\d.]+\n", done.stdout)


def test_the_recipe_example_is_valid() -> None:
    section = ruamel.yaml.YAML(typ="safe").load(block("yaml"))["engine"]
    assert TensorRTOptions.model_validate(section).workspace == 4 << 30
