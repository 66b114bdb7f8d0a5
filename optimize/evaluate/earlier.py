"""The parts of a written report that a later run is compared with, read back into facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from optimize import foreign_files
from optimize.errors import UsageError
from optimize.facts import AccuracyResult, Environment, Fact, GateResult, LayerFact, ModelFacts, ThroughputResult

HINT = "Name the report.json of a run, or its folder."


class Earlier(Fact):
    """As `Report`, without what no comparison needs."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    name: str = ""
    started_at: str = ""
    verdict: str = ""
    data: dict[str, Any] = {}
    environment: Environment | None = None
    exported: ModelFacts | None = None
    optimized: ModelFacts | None = None
    accuracy: tuple[AccuracyResult, ...] = ()
    layers: tuple[LayerFact, ...] = ()
    throughput: ThroughputResult | None = None
    gates: tuple[GateResult, ...] = ()


def load(path: Path) -> dict[str, Any]:
    """A report's data; a folder stands for the report.json in it.

    Raises:
        UsageError: When there is none, or it is no JSON object.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        data = foreign_files.json_data(foreign_files.content(file, foreign_files.LARGEST_REPORT))
    except OSError as error:
        raise UsageError(f"cannot read the report '{file}' ({error.strerror}).", hint=HINT) from error
    except ValueError as error:
        raise UsageError(f"'{file}' is no JSON ({error}).", hint=HINT) from error
    if not isinstance(data, dict):
        raise UsageError(f"'{file}' is no report.", hint=HINT)
    return data


def parts(data: Mapping[str, Any]) -> Earlier:
    """Facts from a report's data.

    Raises:
        UsageError: When a part does not have the form that this version writes.
    """
    try:
        return Earlier.model_validate(dict(data))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"the earlier report is none that this version reads ({place}: {first['msg']}).",
            hint="Make it again with this version.",
        ) from None
