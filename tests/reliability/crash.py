"""Kills a run at random moments and resumes it: `python -m tests.reliability.crash --kills 100`.

After the kills the results must be byte-identical to an undisturbed run's, with no temporary file, no held
lock and no process left. Writes `docs/reliability/crash.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import filelock
import psutil

from tests.support import tiny

RECIPE = Path("recipes/digits-int8-cpu.yaml")
RESULT = Path("docs/reliability/crash.json")
NOT_COMPARED = ("report.json", "report.md", "report.html", "junit.xml", "recipe.base")
"""Reports hold measured times, `recipe.base` a path of this machine; everything else must be the same bytes."""


def command(recipe: Path, store: Path, output: Path) -> list[str]:
    """The run as a user types it."""
    return [sys.executable, "-m", "optimize", "run", str(recipe), "--store", str(store), "--output", str(output)]


def artifacts(output: Path) -> dict[str, str]:
    """sha256 of every result that must not differ between runs."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED and "logs" not in path.relative_to(output).parts
    }


def left_over(store: Path, output: Path) -> list[str]:
    """Temporary files and held locks after a finished run; empty when all is well."""
    found = [str(path) for path in (store / "tmp").iterdir()]
    found += [str(path) for path in output.rglob("*.partial")]
    for path in (store / "locks").iterdir():
        lock = filelock.FileLock(path)
        try:
            with lock.acquire(timeout=0):
                pass
        except filelock.Timeout:
            found.append(f"held lock {path}")
    return found


def workers_of(store: Path) -> list[int]:
    """Step processes that still work for this store."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        if "optimize.pipeline.worker" in line and process.is_running():
            try:
                if any(str(store) in item.path for item in process.open_files()):
                    found.append(process.pid)
            except (psutil.Error, OSError):
                continue
    return found


def harness(recipe: Path, kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Kill `kills` times over as many rounds as it takes; facts of what was seen.

    Raises:
        AssertionError: When anything differs or is left over.
    """
    chance = random.Random(seed)
    calm_store, calm_output = scratch / "calm", scratch / "calm-out"
    started = time.monotonic()
    calm = subprocess.run(command(recipe, calm_store, calm_output), capture_output=True, text=True, check=False)
    assert calm.returncode in (0, 1), calm.stderr
    whole = time.monotonic() - started
    wanted = artifacts(calm_output)
    assert wanted
    done = rounds = 0
    longest = whole * 0.5
    stages: Counter[str] = Counter()
    while done < kills:
        rounds += 1
        store, output = scratch / f"store-{rounds}", scratch / f"out-{rounds}"
        for _ in range(min(kills - done, 10)):
            where = killed_after(recipe, store, output, chance.uniform(0.2, longest))
            if where is None:  # it was done by then: kills must come sooner, and at a fresh store
                longest *= 0.8
                break
            stages[where] += 1
            done += 1
        final = subprocess.run(command(recipe, store, output), capture_output=True, text=True, check=False)
        assert final.returncode == calm.returncode, final.stderr
        assert artifacts(output) == wanted
        assert left_over(store, output) == []
        assert workers_of(store) == []
    return {
        "kills": done,
        "rounds": rounds,
        "undisturbed_seconds": round(whole, 1),
        "killed_during": dict(stages.most_common()),
        "identical_files": len(wanted),
        "seed": seed,
    }


def killed_after(recipe: Path, store: Path, output: Path, seconds: float) -> str | None:
    """Start a run and kill it after `seconds`; the last step it had finished, None when it was done by then."""
    with tempfile.TemporaryFile("w+") as shown:
        process = subprocess.Popen(
            command(recipe, store, output), stdout=subprocess.DEVNULL, stderr=shown, start_new_session=True
        )
        try:
            process.wait(timeout=seconds)
            return None
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        shown.seek(0)
        lines = [line for line in shown.read().splitlines() if line.startswith(("✓", "↺"))]
    return f"after {' '.join(lines[-1].split()[1:2])}" if lines else "before the first step"


def main() -> None:
    """Run the harness and write its facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, help="The recipe to run; a small ONNX model's if absent.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        recipe = given.recipe or tiny.write_recipe(Path(scratch))
        facts = {"recipe": recipe.name, **harness(recipe, given.kills, given.seed, Path(scratch))}
    known = json.loads(RESULT.read_text()) if RESULT.exists() else []
    known = [*(item for item in known if item["recipe"] != recipe.name), facts]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(sorted(known, key=lambda item: str(item["recipe"])), indent=2) + "\n")


if __name__ == "__main__":
    main()
