from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimize.errors import UsageError
from optimize.report import reading
from optimize.report.writing import write
from tests.support import reports


def test_a_written_report_reads_back_the_same(tmp_path: Path) -> None:
    report = reports.passing(accuracy=(reports.accuracy("export", 0.0),))
    write(report, tmp_path)
    assert '"sqnr_db": "Infinity"' in (tmp_path / "report.json").read_text()
    assert reading.read(tmp_path) == report
    assert reading.read(tmp_path / "report.json") == report


def test_the_verdict_in_a_file_is_not_believed() -> None:
    data = json.loads(reports.failing().model_dump_json())
    assert data["verdict"] == "FAIL"
    data["verdict"] = "PASS"
    assert reading.parse(json.dumps(data), "x").verdict == "FAIL"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no schema_version"),
        ('{"schema_version": 7}', "expected a report of schema_version 1, got schema_version 7"),
        ('{"schema_version": 1}', "tool_version: Field required"),
    ],
)
def test_what_is_no_report_is_refused_in_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        reading.parse(text, "old/report.json")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("old/report.json: ")
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        reading.read(tmp_path / "report.json")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file"):
        reading.read(tmp_path)
