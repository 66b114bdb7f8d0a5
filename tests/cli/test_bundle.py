from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optimize.cli.bundle import app
from optimize.errors import UsageError
from tests.support import runs

runner = CliRunner()


def run(*arguments: object) -> str:
    result = runner.invoke(app, [str(item) for item in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_create_verify_and_unpack_speak_of_the_same_manifest(tmp_path: Path) -> None:
    runs.finish(tmp_path / "run")
    created = run("create", tmp_path / "run", "-o", tmp_path / "b.tar.gz")
    digest = created.split("manifest sha256 ")[1].strip()
    assert "verdict PASS" in created
    verified = run("verify", tmp_path / "b.tar.gz", "--sha256", digest)
    assert ": sound, " in verified
    assert digest in verified
    assert "minilm-int8-cpu" in run("unpack", tmp_path / "b.tar.gz", "-o", tmp_path / "out")
    found = json.loads(run("verify", tmp_path / "out", "--json"))
    assert found["problems"] == []
    assert found["sha256"] == digest


def test_a_damaged_bundle_ends_with_one_and_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.finish(tmp_path / "run")
    run("create", tmp_path / "run", "-o", tmp_path / "b")
    (tmp_path / "b" / "report.md").write_text("better figures")
    assert app(["verify", str(tmp_path / "b")], standalone_mode=False) == 1
    assert "error: report.md: changed" in capsys.readouterr().err


def test_what_is_no_run_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        app(["create", str(tmp_path), "-o", str(tmp_path / "b")], standalone_mode=False)


def test_a_triton_repository_is_written_measured_and_verified(tmp_path: Path) -> None:
    ranges = {"ranges": {"batch": {"minimum": 1, "typical": 4, "maximum": 8}}}
    runs.finish(tmp_path / "run", source=ranges)
    options = ("--format", "triton", "--name", "tiny", "--backend", "python")
    run("create", tmp_path / "run", "-o", tmp_path / "repo", *options)
    assert (tmp_path / "repo" / "models" / "tiny" / "1" / "model.py").is_file()
    assert set(json.loads((tmp_path / "repo" / "batch-latency-ms.json").read_text())) == {"1", "2", "4", "8"}
    run("create", tmp_path / "run", "-o", tmp_path / "repo", *options, "--model-version", "2", "--no-measure")
    assert ": sound, " in run("verify", tmp_path / "repo")
