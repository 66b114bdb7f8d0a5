from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from optimize.report import schema
from optimize.report.model import Report
from tests.support import reports


@pytest.fixture(scope="module")
def validator() -> Any:
    published = schema.published()
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def test_the_published_schema_is_the_models() -> None:
    assert schema.published() == schema.build(), (
        "write it anew: optimize report schema -o optimize/report/schema.json"
    )


@pytest.mark.parametrize(
    "report",
    [
        reports.passing(),
        reports.failing(),
        reports.broken(),
        reports.hostile("\x00<"),
        reports.passing(accuracy=(reports.accuracy("export", 0.0),)),
    ],
)
def test_every_written_report_fits_it(report: Report, validator: Any) -> None:
    validator.validate(json.loads(report.model_dump_json()))


def test_it_refuses_what_is_no_report(validator: Any) -> None:
    data = json.loads(reports.passing().model_dump_json())
    for broken in ({**data, "extra": 1}, {**data, "schema_version": 2}, {**data, "verdict": "GOOD"}):
        assert not validator.is_valid(broken)
    data["gates"][0]["value"] = "0.99"
    assert not validator.is_valid(data)
