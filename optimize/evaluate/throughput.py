"""Speed: contenders take turns in one process on the same feeds, after warm-up, and the ratio has an interval."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optimize.engines import collector
from optimize.engines.base import Feeds, Progress, Session
from optimize.errors import UsageError
from optimize.evaluate import energy
from optimize.evaluate.energy import Meter
from optimize.evaluate.intervals import ratio_of_medians
from optimize.facts import Energy, Latency, Speedup, ThroughputResult
from passes.cores import usable_cores

TURN_RUNS = 5
"""Timed runs in a row, after one untimed that brings the contender's weights back into the caches."""

WARMUP_MOST = 50
WARMUP_WINDOW = 5
WARMUP_STABLE = 0.05
"""Warm once the median of the last window is within this of the window before."""
WARMUP_SHARE = 0.25
"""Share of the allowed seconds that all warm-ups together may take."""

ENOUGH_FOR_P90 = 20
ENOUGH_FOR_P99 = 100
"""Below these a percentile would rest on fewer than one or two runs; it is left out."""

ENOUGH_FOR_RATIO = 4
"""Runs of each: with three, even a full separation happens by chance in one case of ten (rank-sum, two-sided)."""

DRIFT = 0.1
BUSY = 1.5
"""Runnable threads per core, from the load average, above which the machine counts as busy."""

Call = Callable[[], None]


def measure(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    *,
    runs: int = 60,
    seconds: float = 60.0,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    devices: Mapping[str, str] | None = None,
    meters: Sequence[Meter] = (),
    energy_missing: str = "",
) -> ThroughputResult:
    """Time every session on `feeds`, in turns of random order.

    Args:
        sessions: Contenders by name; "optimized" is compared with every other, or else each with the first.
        feeds: One batch, axis 0 of the first input counting the samples.
        runs: Timed runs of each.
        seconds: No new round starts after this long; at least one is timed.
        threads: Threads that each contender was allowed, to be recorded; None: one per usable core.
        seed: Seed of the order and of the resampling.
        progress: Told about rounds.
        devices: Where each contender runs ("cpu", "cuda"), to be recorded.
        meters: Read while each runs without a pause, after the timing.
        energy_missing: Why a meter is missing, to be recorded.

    Raises:
        UsageError: When there is nothing to time, or the feeds do not fit.
    """
    if not sessions:
        raise UsageError("throughput: there is nothing to time.")
    tell = progress or (lambda what, done, total: None)
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    calls: dict[str, Call] = {}
    warmups: dict[str, int] = {}
    latest: dict[str, float] = {}
    with collector.at_rest():
        for index, (name, session) in enumerate(sessions.items()):
            tell(f"warming up {name}", index, len(sessions))
            calls[name] = session.prepare(feeds)
            limit = WARMUP_SHARE * seconds / len(sessions)
            warmups[name], latest[name] = _warm_up(calls[name], limit)
        turn = _turn_runs(runs, seconds, sum(latest.values()))
        rounds: dict[str, list[list[float]]] = {name: [] for name in calls}
        total = max(1, -(-runs // turn))
        for done in range(total):
            tell("timing", done, total)
            for name in rng.permutation(list(calls)):
                rounds[name].append(_take_turn(calls[name], turn))
            if time.monotonic() - started > seconds:
                break
        samples = _samples(feeds)
        used: dict[str, tuple[Energy, ...]] = {}
        missing = dict.fromkeys(filter(None, [energy_missing]))
        for done, name in enumerate(calls if meters else ()):
            tell("metering energy", done, len(calls))
            used[name], problems = energy.use(calls[name], meters, samples)
            missing |= dict.fromkeys(problems)
    allowed = threads or usable_cores()
    return ThroughputResult(
        shapes={name: tuple(array.shape) for name, array in feeds.items()},
        threads=allowed,
        contenders=tuple(
            _latency(name, sessions[name], rounds[name], warmups[name], samples, feeds).model_copy(
                update={"energy": used.get(name, ()), "device": (devices or {}).get(name)}
            )
            for name in calls
        ),
        energy_missing="; ".join(missing),
        speedups=tuple(_speedups(rounds, rng)),
        notes=tuple(_notes(rounds, sessions, runs, allowed)),
    )


def _warm_up(call: Call, limit_s: float) -> tuple[int, float]:
    """Run until stable; how many runs that took, and the last one's seconds."""
    times: list[float] = []
    started = time.monotonic()
    while len(times) < WARMUP_MOST:
        times.extend(milliseconds / 1e3 for milliseconds in _timed(call, 1))
        if len(times) >= 2 * WARMUP_WINDOW:
            last = statistics.median(times[-WARMUP_WINDOW:])
            before = statistics.median(times[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
            if abs(last - before) <= WARMUP_STABLE * before:
                break
        if time.monotonic() - started > limit_s and len(times) >= 2:
            break
    return len(times), times[-1]


def _turn_runs(runs: int, seconds: float, round_s: float) -> int:
    """Runs a turn: fewer when even a quarter of the time holds only a few rounds of single runs."""
    affordable = int(seconds / (4 * round_s)) if round_s > 0 else TURN_RUNS
    return max(1, min(TURN_RUNS, runs, affordable))


def _take_turn(call: Call, turn: int) -> list[float]:
    call()
    return _timed(call, turn)


def _timed(call: Call, count: int) -> list[float]:
    """Milliseconds of each of `count` runs; each call returns when its result is there."""
    clock = time.perf_counter_ns
    taken = []
    for _ in range(count):
        begin = clock()
        call()
        taken.append((clock() - begin) / 1e6)
    return taken


def _latency(
    name: str, session: Session, rounds: Sequence[Sequence[float]], warmups: int, samples: int, feeds: Feeds
) -> Latency:
    taken = tuple(itertools.chain.from_iterable(rounds))
    median = statistics.median(taken)
    timings = getattr(session, "timings", None)
    details: dict[str, Any] = dict(timings(feeds).rows()) if timings is not None else {}
    return Latency(
        contender=name,
        title=str(getattr(session, "title", type(session).__name__)),
        samples_ms=taken,
        warmup_runs=warmups,
        mean_ms=statistics.fmean(taken),
        p50_ms=median,
        # an observed run, not a number between two
        p90_ms=float(np.quantile(taken, 0.9, method="higher")) if len(taken) >= ENOUGH_FOR_P90 else None,
        p99_ms=float(np.quantile(taken, 0.99, method="higher")) if len(taken) >= ENOUGH_FOR_P99 else None,
        throughput_per_s=samples / (median / 1e3) if median > 0 else 0.0,
        details=details,
    )


def _speedups(rounds: Mapping[str, list[list[float]]], rng: np.random.Generator) -> Iterator[Speedup]:
    names = list(rounds)
    if "optimized" in rounds:
        pairs = [("optimized", name) for name in names if name != "optimized"]
    else:
        pairs = [(name, names[0]) for name in names[1:]]
    for of, over in pairs:
        found = ratio_of_medians(rounds[over], rounds[of], rng)
        fewest = min(sum(map(len, rounds[name])) for name in (of, over))
        yield Speedup(
            of=of,
            over=over,
            ratio=found.ratio,
            low=found.low,
            high=found.high,
            is_significant=found.is_significant and fewest >= ENOUGH_FOR_RATIO,
        )


def _notes(
    rounds: Mapping[str, list[list[float]]], sessions: Mapping[str, Session], runs: int, threads: int
) -> Iterator[str]:
    taken = {name: list(itertools.chain.from_iterable(turns)) for name, turns in rounds.items()}
    fewest = min(len(times) for times in taken.values())
    if fewest < runs:
        too_few = "; so few say nothing of which is faster" if fewest < ENOUGH_FOR_RATIO else ""
        yield f"The time limit allowed {fewest} of {runs} runs per contender{too_few}."
    for name, times in taken.items():
        half = len(times) // 2
        if half >= WARMUP_WINDOW:
            first, second = statistics.median(times[:half]), statistics.median(times[half:])
            if abs(second - first) > DRIFT * first:
                yield f"{name} drifted: median {first:.3g} ms in the first half, {second:.3g} ms in the second."
    for name, session in sessions.items():
        own = getattr(session, "threads", None)
        if own is not None and own != threads:
            yield f"{name} was allowed {own} threads, not {threads}."
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        yield f"The machine was busy: {load:.1f} runnable threads per core over the last minute."


def _samples(feeds: Feeds) -> int:
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1
