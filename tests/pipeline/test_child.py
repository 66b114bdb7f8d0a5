"""Steps in processes of their own: results, errors, deaths, and no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from optimize.errors import StageFailed, UsageError
from optimize.pipeline import child
from optimize.pipeline.stages import Stage

HERE = Path(__file__).parents[2]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes a step out of a function body, importable by the child."""
    package = tmp_path / "optimize_extra"
    package.mkdir()

    def make(body: str) -> Stage:
        source = "def run(payload, directory, progress):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        (package / "extra.py").write_text(source)
        hook = f"import optimize.pipeline.stages as s; s.__path__.append({str(package)!r})"
        (tmp_path / "sitecustomize.py").write_text(hook)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(HERE))))
        return Stage("extra", runs_user_code=True)

    return make


def run(stage: Stage, tmp_path: Path) -> child.Outcome:
    into = tmp_path / "into"
    into.mkdir(exist_ok=True)
    return child.run(stage, {"n": 2}, into, tmp_path / "log.txt", lambda *_: None)


def test_a_step_gives_its_facts_and_its_peak_memory(stage, tmp_path: Path) -> None:
    outcome = run(
        stage("import time\nx = bytearray(300_000_000)\ntime.sleep(0.5)\nreturn {'n': payload['n'] + 1}"), tmp_path
    )
    assert outcome.facts == {"n": 3}
    assert outcome.peak_anonymous_bytes is not None
    assert 300_000_000 < outcome.peak_anonymous_bytes < 600_000_000


def test_what_it_prints_goes_to_the_log_not_to_the_user(stage, tmp_path: Path, capfd) -> None:
    run(stage("print('noise')\nreturn {}"), tmp_path)
    assert capfd.readouterr().out == ""
    assert "noise" in (tmp_path / "log.txt").read_text()


def test_an_error_arrives_with_its_kind_and_hint(stage, tmp_path: Path) -> None:
    body = "from optimize.errors import UsageError\nraise UsageError('no such thing.', hint='Try another.')"
    with pytest.raises(UsageError) as caught:
        run(stage(body), tmp_path)
    assert (caught.value.message, caught.value.hint) == ("no such thing.", "Try another.")


def test_an_unforeseen_error_is_a_failed_stage_with_one_line(stage, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="ZeroDivisionError: division by zero") as caught:
        run(stage("return 1 / 0"), tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "out of memory"), (signal.SIGSEGV, "crashed")])
def test_a_process_that_dies_is_a_failed_stage(stage, tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(StageFailed, match=words):
        run(stage(f"import os\nos.kill(os.getpid(), {int(number)})"), tmp_path)


def test_files_that_user_code_reads_are_dependencies(stage, tmp_path: Path) -> None:
    read = tmp_path / "weights.txt"
    read.write_text("1")
    outcome = run(stage(f"open({str(read)!r}).read()\nreturn {{}}"), tmp_path)
    assert str(read) in outcome.dependencies


def test_progress_arrives(stage, tmp_path: Path) -> None:
    seen = []
    into = tmp_path / "into"
    into.mkdir()
    made = stage("progress('counting', 1, 2)\nprogress('counting', 2, 2)\nreturn {}")
    child.run(made, {}, into, tmp_path / "log", lambda *event: seen.append(event))
    assert ("counting", 2, 2) in seen


def test_a_killed_parent_takes_its_child_along(stage, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    stage(f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\nreturn {{}}")
    code = (
        "from pathlib import Path\nfrom optimize.pipeline import child\n"
        "from optimize.pipeline.stages import Stage\n"
        f"child.run(Stage('extra', False), {{}}, Path({str(tmp_path)!r}), Path({str(tmp_path / 'log')!r}), print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(marker.read_text())
    parent.kill()
    parent.wait()
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
