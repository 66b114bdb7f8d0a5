"""The container file: every instruction means something here, and its entrypoint serves what it copies."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimize.bundle.triton import repository
from optimize.bundle.triton.options import ServingOptions
from tests.support import runs
from tests.support.triton.assemble import assemble

KNOWN = ("ARG", "FROM", "LABEL", "RUN", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("container")
    runs.finish(folder / "run")
    options = ServingOptions(name="tiny", backend="python", version=3, max_batch=16)
    repository.write(folder / "run", folder / "repo", options)
    return folder / "repo"


def instructions(folder: Path) -> Iterator[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined, comments left out."""
    text = re.sub(r"(?m)^#.*\n", "", (folder / "Containerfile").read_text()).replace("\\\n", "")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


def test_every_instruction_is_one_and_they_come_in_a_working_order(folder: Path) -> None:
    words = [word for word, _ in instructions(folder)]
    assert set(words) <= set(KNOWN)
    assert words[:2] == ["ARG", "FROM"]
    assert words.index("RUN") < words.index("COPY") < words.index("USER") < words.index("ENTRYPOINT")
    arguments = dict(instructions(folder))
    assert arguments["ARG"].partition("=")[0] in arguments["FROM"], "the tag can be chosen when building"


def test_what_it_copies_is_there_and_is_what_the_entrypoint_serves(folder: Path) -> None:
    arguments = dict(instructions(folder))
    *_, source, destination = shlex.split(arguments["COPY"])
    assert (folder / source / "tiny" / "config.pbtxt").is_file()
    assert (folder / source / "tiny" / "3" / "model.py").is_file()
    assert f"--model-repository={destination}" in json.loads(arguments["ENTRYPOINT"])


def test_it_installs_every_package_that_its_models_import_with_the_version_measured(folder: Path) -> None:
    code = (folder / "models" / "tiny" / "3" / "model.py").read_text()
    imported = set(re.findall(r"(?m)^\s*(?:import|from) (numpy|onnxruntime|tokenizers|onnx|torch)\b", code))
    *command, first, second = dict(instructions(folder))["RUN"].split()
    assert command == ["pip", "install", "--no-cache-dir"]
    assert {word.partition("==")[0] for word in (first, second)} == imported == {"numpy", "onnxruntime"}
    assert "onnxruntime==1.32.0" in (first, second), "the version that the report names"


@pytest.mark.slow
@pytest.mark.usefixtures("triton")
def test_the_server_knows_every_option_of_the_entrypoint(folder: Path) -> None:
    server = assemble() / "bin" / "tritonserver"
    shown = subprocess.run([server, "--help"], capture_output=True, text=True, check=False)
    words = json.loads(dict(instructions(folder))["ENTRYPOINT"])
    assert words[0] == "tritonserver"
    for option in words[1:]:
        assert f"{option.partition('=')[0]} <" in shown.stdout + shown.stderr, option
