"""Write a report's files. Each appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from optimize.report import html, junit, markdown
from optimize.report.model import Report


def write(report: Report, directory: Path) -> list[Path]:
    """Write report.json, report.md, report.html and junit.xml.

    Returns:
        The files, report.json first.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.md": markdown.render(report),
        "report.html": html.render(report),
        "junit.xml": junit.render(report),
    }
    return [publish(directory / name, text) for name, text in contents.items()]


def publish(path: Path, text: str) -> Path:
    """Write a text file so that a reader sees the old content or the new, never a part of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
