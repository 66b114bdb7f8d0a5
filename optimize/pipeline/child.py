"""Running a stage in a process of its own, so that a crash, a kill or a leak stays there.

The parent writes a request file and reads events (JSON lines) from a pipe; the child watches its standard
input and ends when the parent does. What the child's libraries print goes to a log file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimize import errors
from optimize.pipeline.stages import Stage

OnProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage's process gave back.

    Attributes:
        facts: The stage's result, JSON data.
        seconds: Wall time of the process.
        peak_anonymous_bytes: Peak anonymous memory, sampled; None where the platform does not say.
        dependencies: Digest of each further file the user's code read, by path.
    """

    facts: dict[str, Any]
    seconds: float
    peak_anonymous_bytes: int | None
    dependencies: dict[str, str]


def run(
    stage: Stage,
    payload: Mapping[str, Any],
    directory: Path,
    log: Path,
    progress: OnProgress,
    *,
    store: Path | None = None,
) -> Outcome:
    """Run one stage in a child process.

    Args:
        stage: Which one.
        payload: JSON data it needs.
        directory: The folder it writes into.
        log: File that receives what the process prints.
        progress: Called with (what, done, total).
        store: Folder that a stage with the user's code must not write to, `directory` apart.

    Raises:
        OptimizeError: What the stage reported; StageFailed when the process died.
        KeyboardInterrupt: After the child was stopped.
    """
    started = time.monotonic()
    read_end, write_end = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    request = json.dumps(
        {
            "stage": stage.module,
            "runs_user_code": stage.runs_user_code,
            "payload": payload,
            "directory": str(directory.absolute()),
            "store": str(store.absolute()) if store is not None and stage.runs_user_code else None,
        }
    )
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "optimize.pipeline.worker", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=printed,
            pass_fds=(write_end,),
            start_new_session=True,
        )
    os.close(write_end)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        result = _follow(read_end, progress)
        process.wait()
    finally:
        os.close(read_end)
        _stop(process)
    if result is None:
        raise errors.StageFailed(f"{stage.module}: {_death(process.returncode)}", hint=_last_words(log))
    if "error" in result:
        raise _error_from(result["error"], log)
    return Outcome(
        facts=result["facts"],
        seconds=time.monotonic() - started,
        peak_anonymous_bytes=result.get("peak_anonymous_bytes"),
        dependencies=result.get("dependencies", {}),
    )


def _follow(read_end: int, progress: OnProgress) -> dict[str, Any] | None:
    """Read events until the result or the end of the pipe."""
    result: dict[str, Any] | None = None
    with os.fdopen(os.dup(read_end), "rb") as events:
        for line in events:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if "progress" in event:
                what, done, total = event["progress"]
                progress(str(what), int(done), int(total))
            else:
                result = event
    return result


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            return f"its process was killed ({name}); most often the machine ran out of memory."
        return f"its process crashed ({name})."
    return f"its process ended without a result (exit code {code})."


def _last_words(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f"Its last words: {lines[-1][:300]}" if lines else ""


def _error_from(error: Mapping[str, Any], log: Path) -> errors.OptimizeError:
    kind = errors.KINDS.get(str(error.get("kind")))
    if kind is not None:
        return kind(str(error["message"]), hint=str(error.get("hint", "")))
    return errors.StageFailed(str(error.get("message")), hint=f"The log is {log}.")
