"""report.json → Report, with one clear sentence when it is not one."""

from __future__ import annotations

from pathlib import Path

import pydantic

from optimize import foreign_files
from optimize.errors import UsageError
from optimize.report.model import SCHEMA_VERSION, Report


def read(path: Path) -> Report:
    """Read a report; a folder stands for the report.json in it.

    Raises:
        UsageError: When there is none, it is no JSON, of another schema version, or does not fit the schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        text = foreign_files.content(file, foreign_files.LARGEST_REPORT).decode("utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}.", hint="Give a report.json or its folder.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not a text file.", hint="Give a report.json or its folder.") from None
    return parse(text, str(file))


def parse(text: str, origin: str) -> Report:
    """A report from its JSON text; `origin` names it in errors.

    Raises:
        UsageError: As `read`.
    """
    try:
        data = foreign_files.json_data(text)
    except ValueError as error:
        raise UsageError(f"{origin}: not JSON ({error}).") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        got = "no schema_version" if version is None else f"schema_version {version!r}"
        raise UsageError(
            f"{origin}: expected a report of schema_version {SCHEMA_VERSION}, got {got}.",
            hint="Make it again with this version of optimize.",
        )
    try:
        return Report.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{origin}: {place}: {first['msg']} ({error.error_count()} in all).",
            hint="It was not written by this version of optimize, or was edited.",
        ) from None
