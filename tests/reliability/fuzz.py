"""Feeds broken and hostile files to everything that reads one: `python -m tests.reliability.fuzz --cases 100000`.

A case passes when the file is taken, or refused by one of this project's errors: exit code 2 or 4, a short
message, within ten seconds and two gigabytes. Anything else (another exception, a hang, a dead process) is a
failure; its input is kept. Writes `docs/reliability/fuzz.json`. With `--guided SECONDS`, atheris lets coverage
guide the inputs of each reader for so long; writes `docs/reliability/guided.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.fuzz_readers import READERS, Reader
from tests.support import tiny

RESULT = Path("docs/reliability/fuzz.json")
GUIDED = Path("docs/reliability/guided.json")
INSTRUMENTED = ("optimize", "ruamel", "zipfile", "tarfile", "numpy.lib")
"""Packages whose branches guide the inputs; the others are C++ or too large to instrument in a minute."""

SECONDS = 10
MEMORY_BYTES = 2_000_000_000
LONGEST_MESSAGE = 4_000
"""Characters; a recipe's error lists every fault, a line each."""


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """A damaged copy: flipped, cut, repeated, swapped or inserted bytes, or interesting words among them."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        kind = chance.randrange(7)
        place = chance.randrange(len(data) + 1)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = chance.randbytes(chance.choice((1, 4, 64)))
        elif kind == 3:
            data[place:place] = data[place : place + chance.randrange(1, 200)]
        elif kind == 4:
            del data[place : place + chance.randrange(1, 50)]
        elif kind == 5:
            data[place:place] = chance.choice(WORDS)
        else:
            other = chance.randrange(len(data) + 1)
            data[place:place] = data[min(place, other) : max(place, other)][:300]
        if len(data) > 1 << 20:
            del data[1 << 20 :]
    return bytes(data)


WORDS = (
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a, *a]",
    b"*a",
    b"../../etc/passwd",
    b"/etc/passwd",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80" * 20,
    b"999999999999999999999",
    b"-1",
    b"NaN",
    b"1e999",
    b"\x00",
    b"\x1b[2J",
    b"<script>alert(1)</script>",
    b"${a}",
    b"{" * 500,
    b"[" * 500,
    b"\n- ",
    b": ",
    b"?",
)


def judge(reader: Reader, data: bytes, folder: Path) -> str | None:
    """Read one case; what is wrong with how it went, or None."""
    from optimize.errors import STAGE_FAILED, USAGE, OptimizeError

    path = folder / f"case{reader.suffix}"
    path.write_bytes(data)
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        reader.read(path)
    except OptimizeError as error:
        if error.exit_code not in (USAGE, STAGE_FAILED):
            return f"exit code {error.exit_code}"
        if not error.message or "Traceback" in error.message or len(str(error)) > LONGEST_MESSAGE:
            return f"message of {len(str(error))} characters: {str(error)[:200]}"
    except TimeoutError:
        return f"no answer within {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - started > SECONDS:
        return "too slow"
    return None


def work(name: str, first: int, cases: int, seed: int, into: str) -> None:
    """One process's share of cases; writes what failed as JSON lines."""

    def too_late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_late)
    reader = READERS[name]()
    with tempfile.TemporaryDirectory() as folder, Path(into).open("a") as failures:
        tiny.write_model(Path(folder) / "tiny.onnx", width=4)
        np.savez(Path(folder) / "tiny.npz", x=np.ones((8, 4), np.float32))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + cases):
            chance = random.Random(f"{seed}-{name}-{number}")
            data = mutated(chance.choice(reader.seeds), chance)
            Path(into + ".last").write_bytes(data)
            problem = judge(reader, data, Path(folder))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if grown > MEMORY_BYTES:
                problem = problem or f"{grown / 1e9:.1f} GB of memory"
            if problem:
                failures.write(
                    json.dumps({"reader": name, "case": number, "problem": problem, "hex": data.hex()}) + "\n"
                )
                failures.flush()


def fuzz(
    name: str, cases: int, seed: int, folder: Path, chunk: int = 2_000, workers: int = 1
) -> list[dict[str, Any]]:
    """Run `cases` cases of one reader in processes of their own; the failures, dead processes among them."""

    def share(first: int) -> list[dict[str, Any]]:
        into = folder / f"{name}-{first}.jsonl"
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(name, first, min(chunk, cases - first), seed, str(into))
        )
        process.start()
        process.join()
        found = [json.loads(line) for line in into.read_text().splitlines()] if into.exists() else []
        if process.exitcode != 0:
            last = Path(f"{into}.last").read_bytes() if Path(f"{into}.last").exists() else b""
            problem = f"process died ({process.exitcode})"
            found.append({"reader": name, "case": -1, "problem": problem, "hex": last.hex()})
        return found

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return [failure for found in pool.map(share, range(0, cases, chunk)) for failure in found]


def guided(name: str, corpus: str, seconds: int) -> None:
    """Let coverage guide the inputs of one reader, in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        reader = READERS[name]()
    folder = Path(tempfile.mkdtemp())
    for number, seed in enumerate(reader.seeds):
        (Path(corpus) / f"seed-{number}").write_bytes(seed)

    def too_late(*_: object) -> None:
        raise TimeoutError

    def one(data: bytes) -> None:
        problem = judge(reader, data, folder)
        if problem:
            raise AssertionError(problem)

    signal.signal(signal.SIGALRM, too_late)
    limits = [
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MEMORY_BYTES >> 20}",
        f"-artifact_prefix={corpus}/failed-",
    ]
    atheris.Setup([sys.argv[0], *limits, "-verbosity=1", corpus], one)
    atheris.Fuzz()


def guide(name: str, seconds: int) -> dict[str, Any]:
    """Run `guided` in a process of its own; how many inputs, how much code they reached, and what failed."""
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, "-m", "tests.reliability.fuzz", "--atheris", name, corpus, str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        failed = [path.read_bytes().hex() for path in sorted(Path(corpus).glob("failed-*"))]
    inputs = re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    if done.returncode != 0:
        sys.stderr.write(f"{name}: {done.stderr[-2000:]}\n")
    return {
        "reader": name,
        "inputs": int(inputs[-1]) if inputs else 0,
        "first_covered": int(covered[0]) if covered else None,
        "covered": int(covered[-1]) if covered else None,
        "failures": len(failed) or int(done.returncode != 0),
        "seconds": seconds,
        "failed_inputs": failed,
    }


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="Of all readers together.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=sorted(READERS))
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="Seconds of atheris for each reader.")
    parser.add_argument("--atheris", nargs=3, metavar=("READER", "CORPUS", "SECONDS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.atheris:
        guided(given.atheris[0], given.atheris[1], int(given.atheris[2]))
    names = [given.only] if given.only else list(READERS)
    if given.guided:
        with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
            found = list(pool.map(lambda name: guide(name, given.guided), names))
        GUIDED.write_text(json.dumps(found, indent=2) + "\n")
        if any(row["failures"] for row in found):
            raise SystemExit(f"failed inputs are in {GUIDED}")
        return
    each = -(-given.cases // len(READERS))
    rows = {row["reader"]: row for row in json.loads(RESULT.read_text())} if RESULT.exists() else {}
    failures = {}
    for name in names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            failures[name] = fuzz(name, each, given.seed, Path(folder), workers=given.workers)
        rows[name] = {
            "reader": name,
            "cases": each,
            "failures": len(failures[name]),
            "seconds": round(time.monotonic() - started),
            "seed": given.seed,
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps([rows[key] for key in sorted(rows)], indent=2) + "\n")
        for problem, count in Counter(item["problem"] for item in failures[name]).most_common(10):
            sys.stderr.write(f"{name}: {count} × {problem}\n")
    if any(failures.values()):
        kept = Path("out/fuzz-failures.json")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(failures, indent=1))
        raise SystemExit(f"failures are kept in {kept}")


if __name__ == "__main__":
    main()
