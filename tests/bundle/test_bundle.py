"""A finished run handed over: everything is in it, nothing in it can change unseen, and it opens and runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from optimize.bundle import archive, building, verifying
from optimize.engines.onnxruntime import OnnxRuntimeEngine
from optimize.errors import UsageError
from optimize.facts import StageRecord
from optimize.onnx_files import sha256_of
from tests.support import reports, runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    runs.finish(tmp_path / "run")
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "secret.log").write_text("not for others")
    return tmp_path / "run"


def test_a_bundle_holds_engine_model_report_recipe_and_scripts_and_no_more(run: Path, tmp_path: Path) -> None:
    manifest = building.bundle(run, tmp_path / "b")
    roles = {entry.path: entry.role for entry in manifest.files}
    assert roles["model.onnx"] == "model"
    assert roles[manifest.engine["file"]] == "engine"
    assert roles["report.json"] == "report"
    assert roles["recipe.resolved.yaml"] == "recipe"
    assert roles["reproduce/4-passes.sh"] == "reproduce"
    assert not any("log" in path for path in roles)
    on_disk = {
        path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b").rglob("*") if path.is_file()
    }
    assert on_disk == {*roles, "manifest.json"}
    assert manifest.headline == "3.1 × faster, 3.9 × smaller, cosine 0.99707"
    assert manifest.data["calibration"]["sha256"] == "ab" * 32
    assert manifest.inputs[0]["shape"] == ["batch", 4]


def test_the_bundled_engine_opens_and_computes(run: Path, tmp_path: Path) -> None:
    manifest = building.bundle(run, tmp_path / "b")
    with OnnxRuntimeEngine().open(tmp_path / "b" / manifest.engine["file"]) as session:
        result = session.run({"x": np.ones((3, 4), np.float32)})["y"]
    np.testing.assert_array_equal(result, [[16, 20]] * 3)


def test_external_data_travels_with_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.finish(tmp_path / "run", is_external=True)
    monkeypatch.chdir(tmp_path)
    manifest = building.bundle(Path("run"), Path("b.tar"))
    assert {"model.onnx", "model.onnx.data"} <= {entry.path for entry in manifest.files if entry.role == "model"}
    archive.unpack(Path("b.tar"), Path("out"))
    assert len((tmp_path / "out" / "reproduce" / "expected.sha256").read_text().splitlines()) == 2
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["y"], {"x": np.ones((1, 4), np.float32)})[0], [[16, 20]])
    (tmp_path / "run" / "model.onnx.data").write_bytes(bytes(32))
    with pytest.raises(UsageError, match="not the file that was measured"):
        building.bundle(Path("run"), Path("again"))


@pytest.mark.parametrize("name", ["b", "b.tar", "b.tar.gz", "b.tgz"])
def test_every_form_verifies_and_an_archive_unpacks_to_the_same_folder(
    run: Path, tmp_path: Path, name: str
) -> None:
    manifest = building.bundle(run, tmp_path / name)
    found = verifying.verify(tmp_path / name)
    assert found.problems == ()
    assert found.manifest == manifest
    assert verifying.verify(tmp_path / name, sha256=found.sha256).problems == ()
    assert "expected" in verifying.verify(tmp_path / name, sha256="0" * 64).problems[0]
    if name == "b":
        assert found.sha256 == sha256_of(tmp_path / "b" / "manifest.json")
    else:
        archive.unpack(tmp_path / name, tmp_path / "out")
        assert verifying.verify(tmp_path / "out").problems == ()
        assert os.access(tmp_path / "out" / "reproduce" / "all.sh", os.X_OK)
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
def test_two_archives_of_a_run_are_the_same_bytes(run: Path, tmp_path: Path, name: str) -> None:
    building.bundle(run, tmp_path / "1" / name)
    for path in run.rglob("*"):
        os.utime(path, (1, 1))
    building.bundle(run, tmp_path / "2" / name)
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("change", ["content", "shorter", "missing", "extra", "link"])
def test_any_change_in_a_folder_is_found(run: Path, tmp_path: Path, change: str) -> None:
    building.bundle(run, tmp_path / "b")
    file = tmp_path / "b" / "model.onnx"
    content = bytearray(file.read_bytes())
    if change == "content":
        content[-1] ^= 1
        file.write_bytes(content)
    elif change == "shorter":
        file.write_bytes(content[:-1])
    elif change == "missing":
        file.unlink()
    elif change == "extra":
        (tmp_path / "b" / "engine" / "extra.so").write_bytes(b"x")
    else:
        file.unlink()
        file.symlink_to(run / "model.onnx")
    problems = verifying.verify(tmp_path / "b").problems
    assert len(problems) == 1, problems
    expected = {"extra": "engine/extra.so: not in the manifest", "link": "model.onnx: is a link"}
    assert problems[0].startswith(expected.get(change, "model.onnx: "))


def test_a_changed_byte_in_an_archive_is_found_and_nothing_is_unpacked(run: Path, tmp_path: Path) -> None:
    building.bundle(run, tmp_path / "b.tar")
    content = (tmp_path / "b.tar").read_bytes()
    weights = np.arange(1, 9, dtype=np.float32).tobytes()
    assert weights in content
    (tmp_path / "b.tar").write_bytes(content.replace(weights, weights[::-1]))
    problems = verifying.verify(tmp_path / "b.tar").problems
    assert any(problem.startswith("model.onnx: changed") for problem in problems)
    with pytest.raises(UsageError, match="damaged"):
        archive.unpack(tmp_path / "b.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_requirements_are_what_an_index_has_and_script_names_have_no_spaces(tmp_path: Path) -> None:
    here = reports.passing().environment.model_copy(update={"libraries": {"torch": "2.13.0+cpu", "onnx": "1.21.0"}})
    stages = (StageRecord(name="build baseline", outcome="done"), StageRecord(name="blame", outcome="done"))
    runs.finish(tmp_path / "run", environment=here, stages=stages)
    building.bundle(tmp_path / "run", tmp_path / "b")
    folder = tmp_path / "b" / "reproduce"
    assert (folder / "requirements.txt").read_text().splitlines()[1:] == ["onnx==1.21.0", "torch==2.13.0"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "1-build-baseline.sh", "all.sh", "expected.sha256", "requirements.txt",
    ]  # fmt: skip
    assert "--fresh 'build baseline'" in (folder / "1-build-baseline.sh").read_text()


def test_a_run_that_failed_is_bundled_only_on_request(tmp_path: Path) -> None:
    runs.finish(tmp_path / "run", report=reports.failing())
    with pytest.raises(UsageError, match="verdict is FAIL"):
        building.bundle(tmp_path / "run", tmp_path / "b")
    assert building.bundle(tmp_path / "run", tmp_path / "b", allow_failed=True).verdict == "FAIL"


def test_a_run_that_broke_is_never_bundled(tmp_path: Path) -> None:
    runs.finish(tmp_path / "run", report=reports.broken())
    with pytest.raises(UsageError, match="did not finish"):
        building.bundle(tmp_path / "run", tmp_path / "b", allow_failed=True)


def test_a_run_that_was_stopped_early_is_never_bundled(tmp_path: Path) -> None:
    runs.finish(tmp_path / "run", stopped_after="passes", gates=())
    with pytest.raises(UsageError, match="stopped after 'passes'"):
        building.bundle(tmp_path / "run", tmp_path / "b", allow_failed=True)


def test_data_outside_the_run_is_neither_read_nor_written(tmp_path: Path) -> None:
    """A run from elsewhere whose weights lie in ../x would have x written beside the bundle."""
    runs.finish(tmp_path / "evil" / "run", is_external=True)
    model = onnx.load(tmp_path / "evil" / "run" / "model.onnx", load_external_data=False)
    (entry,) = [item for item in model.graph.initializer[0].external_data if item.key == "location"]
    entry.value = "../payload"
    onnx.save(model, tmp_path / "evil" / "run" / "model.onnx")
    (tmp_path / "evil" / "run" / "model.onnx.data").rename(tmp_path / "evil" / "payload")
    report = json.loads((tmp_path / "evil" / "run" / "report.json").read_text())
    content = hashlib.sha256(sha256_of(tmp_path / "evil" / "run" / "model.onnx").encode())
    content.update(sha256_of(tmp_path / "evil" / "payload").encode())
    report["artifacts"][0]["sha256"] = content.hexdigest()
    (tmp_path / "evil" / "run" / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="data must lie in the model's own folder"):
        building.bundle(tmp_path / "evil" / "run", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil"]


@pytest.mark.parametrize("place", ["engine/cache", "model.onnx", "report.md"])
def test_what_a_link_brings_in_is_not_bundled(run: Path, tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((run / place).read_bytes() if (run / place).exists() else b"private")
    (run / place).unlink(missing_ok=True)
    (run / place).symlink_to(secret)
    with pytest.raises(UsageError, match="is a link, or reached through one"):
        building.bundle(run, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["1.0; touch pwned #", "1.0\nRUN touch pwned", "--index-url=http://evil"])
def test_a_version_that_is_a_command_is_refused(tmp_path: Path, name: str) -> None:
    for number, libraries in enumerate(({"onnxruntime": name}, {name: "1.0"})):
        here = reports.passing().environment.model_copy(update={"libraries": libraries})
        runs.finish(tmp_path / f"run{number}", environment=here)
        with pytest.raises(UsageError, match="which none is"):
            building.bundle(tmp_path / f"run{number}", tmp_path / "b")


@pytest.mark.parametrize("file", ["model.onnx", "engine"])
def test_files_changed_since_they_were_measured_are_refused(run: Path, tmp_path: Path, file: str) -> None:
    report = json.loads((run / "report.json").read_text())
    name = file if file == "model.onnx" else report["artifacts"][1]["file"]
    content = (run / name).read_bytes()
    (run / name).write_bytes(content.replace(b"tiny", b"tinz") if file == "model.onnx" else content + b"\0")
    with pytest.raises(UsageError, match="not the file that was measured"):
        building.bundle(run, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_existing_destination_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="exists"):
        building.bundle(run, tmp_path / "b")


def test_the_scripts_run_every_stage_again_from_the_bundled_recipe(run: Path, tmp_path: Path) -> None:
    """The scripts are real; `optimize` only tells how it was called, and gives the model back."""
    building.bundle(run, tmp_path / "b")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "optimize").write_text(f'#!/bin/sh\necho "$@"\ncat "$2"\ncp {run}/model.onnx "$4"\n')
    (tools / "optimize").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SOURCES": str(tmp_path / "m'y: & #project")}
    (tmp_path / "m'y: & #project").mkdir()
    script = tmp_path / "b" / "reproduce" / "4-passes.sh"
    done = subprocess.run([script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--fresh passes" in done.stdout
    assert f"base: '{tmp_path}/m''y: & #project'" in done.stdout
    script = tmp_path / "b" / "reproduce" / "all.sh"
    done = subprocess.run([script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model.onnx: OK" in done.stdout
    assert verifying.verify(tmp_path / "b").problems == (), "what is made again lies elsewhere"
    (run / "model.onnx").write_bytes(b"other")
    assert subprocess.run([script], cwd=tmp_path, env=environment, capture_output=True).returncode != 0
    del environment["SOURCES"]
    done = subprocess.run([script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Set SOURCES" in done.stderr
