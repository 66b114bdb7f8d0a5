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
from passes import registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tensorrt.md").read_text()


def block(language: str, holding: str = "") -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (one,) = (str(text) for text in found if holding in text)
    return one


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
    section = ruamel.yaml.YAML(typ="safe").load(block("yaml", "workspace"))["engine"]
    assert TensorRTOptions.model_validate(section).workspace == 4 << 30


def test_the_example_with_layers_of_the_plugin_is_valid() -> None:
    recipe = ruamel.yaml.YAML(typ="safe").load(block("yaml", "plugin_layers"))
    assert TensorRTOptions.model_validate(recipe["engine"]).plugin_layers == ("products", "attention", "norms")
    for step in recipe["passes"]:
        name, options = next(iter(step.items())) if isinstance(step, dict) else (step, {})
        for found in registry.room_default(name) if name in registry.ROOMS else (name,):
            registry.find(found)(**options)
