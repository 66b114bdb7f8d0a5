"""Code blocks of a Markdown page, as its reader would use them: files to write, commands to run, Python to run."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: "python", "console", "yaml", …
        title: File name that the reader saves it under, or "".
        line: 1-based line in the page.
    """

    language: str
    title: str
    body: str
    line: int


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2] or "", match[3], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def environment(folder: Path) -> dict[str, str]:
    """An environment in which `optimize` is the working tree's, with a store of its own."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    script = commands / "optimize"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m optimize "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join([str(commands), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OPTIMIZE_STORE": str(folder / "store")}


def execute(page: Path, folder: Path) -> int:
    """Do what the page says, in `folder`; how many blocks were run or written.

    In a `console` block lines after a command (`$ …`) must appear in what it prints, as parts of lines.
    """
    done = 0
    variables = environment(folder)
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.title:
            (folder / block.title).write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            _run([sys.executable, "-c", block.body], folder, variables, where)
        elif block.language == "console":
            _console(block, folder, variables, where)
        else:
            continue
        done += 1
    return done


def _console(block: Block, folder: Path, variables: dict[str, str], where: str) -> None:
    output = ""
    for line in block.body.splitlines():
        if line.startswith("$ "):
            output = _run(["bash", "-c", line[2:]], folder, variables, f"{where}: {line}")
        else:
            assert _plain(line) in _plain(output), f"{where}: '{line}' is not in the output:\n{output}"


def _run(command: list[str], folder: Path, variables: dict[str, str], where: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _plain(text: str) -> str:
    return " ".join(text.split())
