"""What a bundle says of itself: every file with its digest, and where, from what and how well it was made."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

import pydantic

from optimize import foreign_files
from optimize.errors import UsageError
from optimize.report import headline
from optimize.report.model import Report

SCHEMA_VERSION = 1
NAME = "manifest.json"
MAXIMUM_BYTES = 16_000_000
"""A manifest lists files; a larger one is something else."""

MAXIMUM_FILES = 20_000


class Entry(pydantic.BaseModel):
    """One file of the bundle.

    Attributes:
        path: Relative, with "/", below the bundle's folder.
        role: "engine", "model", "report", "recipe", "reproduce" or "serving".
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    path: str
    role: str
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = pydantic.Field(ge=0)
    is_executable: bool = False

    @pydantic.field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if not is_safe(path):
            raise ValueError(f"'{path}' leaves the bundle's folder or is no plain relative path")
        return path


class Manifest(pydantic.BaseModel):
    """A bundle's manifest.

    Attributes:
        created_at: When the run that it holds started, ISO 8601, UTC; so two bundles of a run are equal.
        headline: "3.1 × faster, 3.8 × smaller, cosine 0.997".
        engine: File, kind, made by, and what the engine reports of itself.
        inputs, outputs: Name, dtype and shape of each.
        environment: Device, processor and library versions that the engine was made and measured with.
        data: Digests and counts of calibration and evaluation data.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    tool_version: str
    created_at: str
    verdict: Literal["PASS", "FAIL", "ERROR"]
    headline: str
    target: str
    recipe_sha256: str
    engine: dict[str, Any]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    data: dict[str, Any]
    files: tuple[Entry, ...]

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Manifest:
        # Folded case: two files that differ in case alone are one file on some file systems.
        paths = [entry.path.casefold() for entry in self.files]
        if len(paths) != len(set(paths)) or NAME in paths:
            raise ValueError("a file is listed twice")
        if len(paths) > MAXIMUM_FILES:
            raise ValueError(f"more than {MAXIMUM_FILES:,} files")
        return self

    def text(self) -> str:
        """The manifest's file."""
        return self.model_dump_json(indent=2) + "\n"


def is_safe(path: str) -> bool:
    """Whether a path is relative, plain and stays below the folder it is joined to, on any system."""
    pure = PurePosixPath(path)
    return bool(
        path
        and path == str(pure)
        and not pure.is_absolute()
        and ".." not in pure.parts
        and not any(character in path for character in '\\:*?"<>|')
        and path.isprintable()
        and len(path) <= 400
    )


def describe(report: Report, files: tuple[Entry, ...]) -> Manifest:
    """The manifest of a run's bundle."""
    engine = next((item for item in report.artifacts if item.label == "engine"), None)
    here = report.environment
    return Manifest(
        name=report.name,
        tool_version=report.tool_version,
        created_at=report.started_at,
        verdict=report.verdict,
        headline=headline.sentence(report),
        target=str(report.target.get("name", "")),
        recipe_sha256=report.recipe_sha256,
        engine={
            **({"file": engine.file, "kind": engine.kind, "made_by": engine.made_by} if engine else {}),
            "options": report.recipe.get("engine", {}),
        },
        inputs=report.optimized.inputs if report.optimized else (),
        outputs=report.optimized.outputs if report.optimized else (),
        environment={
            "devices": list(here.devices),
            "processor": here.processor,
            "instructions": list(here.instructions),
            "platform": here.platform,
            "python": here.python,
            "libraries": here.libraries,
        },
        data=report.data,
        files=files,
    )


def parse(text: str | bytes, origin: str) -> Manifest:
    """A manifest from its file's text.

    Raises:
        UsageError: When it is none, or of another schema version.
    """
    try:
        data = foreign_files.json_data(text)
    except ValueError as error:
        raise UsageError(f"{origin}: {NAME} is not JSON ({error}).") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{origin}: expected a manifest of schema_version {SCHEMA_VERSION}, got {version!r}.")
    try:
        return Manifest.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{origin}: {NAME}: {place or 'files'}: {first['msg']}.") from None
