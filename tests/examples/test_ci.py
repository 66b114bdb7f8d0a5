"""The examples for CI systems and clusters fit their published schemas, and what they call exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from optimize.cli.report import app as report_app
from optimize.errors import GATE_FAILED, STAGE_FAILED, BackendMissing, UsageError
from optimize.report.writing import write
from tests.support import reports

EXAMPLES = Path(__file__).parents[2] / "examples"
SCHEMAS = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"


def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def validator(name: str) -> Any:
    schema = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.mark.parametrize(
    ("file", "schema", "spoil"),
    [
        ("action.yml", "github-actions.json", lambda data: data["runs"]["steps"][2].pop("shell")),
        ("github-workflow.yml", "github-workflows.json", lambda data: data["jobs"]["minilm"].pop("runs-on")),
        ("gitlab.yml", "gitlab-ci.json", lambda data: data["optimize"].update(artifacts={"when": "never"})),
    ],
)
def test_it_fits_the_systems_published_schema(file: str, schema: str, spoil: Any) -> None:
    data = {name.lstrip("."): part for name, part in load(EXAMPLES / "ci" / file).items()}  # hidden jobs too
    validator(schema).validate(data)
    spoil(data)
    assert not validator(schema).is_valid(data), "the schema must notice a fault"


def documents() -> list[dict[str, Any]]:
    text = (EXAMPLES / "kubernetes" / "job.yaml").read_text(encoding="utf-8")
    return list(YAML(typ="safe", pure=True).load_all(text))


def test_the_job_fits_the_cluster_api_strictly_and_asks_for_a_gpu() -> None:
    job, claim = documents()
    for document in (job, claim):
        kubernetes_validate.validate(document, "1.36", strict=True)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    container["resources"]["limit"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.36", strict=True)


def test_the_job_tries_again_only_after_what_may_go_better_the_next_time() -> None:
    rules = documents()[0]["spec"]["podFailurePolicy"]["rules"]
    final = next(rule for rule in rules if rule["action"] == "FailJob")["onExitCodes"]["values"]
    assert set(final) == {GATE_FAILED, UsageError.exit_code, BackendMissing.exit_code}
    assert STAGE_FAILED not in final


def script(step_id: str) -> str:
    steps = load(EXAMPLES / "ci" / "action.yml")["runs"]["steps"]
    return str(next(step for step in steps if step.get("id") == step_id)["run"])


def test_no_input_is_pasted_into_a_script() -> None:
    for step in load(EXAMPLES / "ci" / "action.yml")["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize(
    ("report", "code", "verdict"), [(reports.passing(), 0, "PASS"), (reports.failing(), 1, "FAIL")]
)
def test_the_actions_step_ends_as_the_run_does_and_leaves_verdict_and_summary(
    tmp_path: Path, report: Any, code: int, verdict: str
) -> None:
    """The step's own script in bash; the run itself is replaced by a finished one, `optimize report` is real."""
    write(report, tmp_path / "finished")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "optimize").write_text(
        f"#!/bin/sh\n"
        f'if [ "$1" = run ]; then mkdir -p "$4"; cp {shlex.quote(str(tmp_path))}/finished/* "$4"; exit {code}; fi\n'
        f"shift\n"
        f'exec {shlex.quote(sys.executable)} -c "from optimize.cli.report import app; app()" "$@"\n'
    )
    (tools / "optimize").chmod(0o755)
    environment = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent),
        "RECIPE": "recipes/minilm int8.yaml",
        "OUTPUT": "out dir/x",
        "PREVIOUS": "",
        "GITHUB_OUTPUT": str(tmp_path / "outputs"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script("run")],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert (tmp_path / "outputs").read_text() == f"verdict={verdict}\nreport=out dir/x/report.json\n"
    assert verdict in (tmp_path / "summary").read_text()
    assert done.stdout.startswith("::error file=recipes/minilm int8.yaml" if code else "::notice ")


def test_the_gitlab_jobs_reports_are_files_that_the_run_and_its_scripts_write(tmp_path: Path) -> None:
    job = load(EXAMPLES / "ci" / "gitlab.yml")[".optimize"]
    files = {path.name for path in write(reports.failing(), tmp_path)}
    for path in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert path.removeprefix("$OUTPUT/") in files
    command = re.search(r"optimize report (gitlab .*)", job["after_script"][0])
    assert command is not None
    words = [word.replace("$OUTPUT", str(tmp_path)).replace("$RECIPE", "r.yaml") for word in
             shlex.split(command.group(1))]  # fmt: skip
    words[-1] = str(tmp_path / words[-1])
    assert Path(words[-1]).name == job["artifacts"]["reports"]["codequality"]
    assert CliRunner().invoke(report_app, words, catch_exceptions=False).exit_code == 0
    assert len(json.loads(Path(words[-1]).read_text())) == 2
