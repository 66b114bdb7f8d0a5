"""What a pass is given of the world: calibration data that flows through a model, and a judge of candidates."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimize.engines.base import AxisRange, BuildRequest, Engine
from optimize.evaluate.accuracy import Comparison, Kind
from optimize.pipeline import batches
from passes.base import Runner

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class StoredCalibration:
    """Calibration batches on disk (`passes.base.Calibration`)."""

    directory: Path
    samples: int
    runner: Runner

    def feeds(self) -> Iterator[Mapping[str, Array]]:
        """Yield the batches in order, one in memory at a time."""
        yield from batches.read(self.directory)

    def observe(self, model: ir.Model, values: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Yield the named inner values of `model` per batch, run unoptimised."""
        for feeds in self.feeds():
            yield self.runner(model, feeds, values)


@dataclasses.dataclass
class StoredJudge:
    """Scores candidates on the last quarter of the calibration batches, never on the evaluation data.

    Satisfies `passes.base.Judge`. Fewer than four batches are all scored.
    """

    calibration: StoredCalibration
    reference: ir.Model
    engine: Engine
    ranges: Mapping[str, AxisRange]
    scratch: Path
    kind: Kind
    simulate: Callable[[ir.Model], ir.Model]

    @functools.cached_property
    def held_out(self) -> int:
        """A quarter of the batches."""
        return batches.count(self.calibration.directory) // 4

    def _scored(self) -> Iterator[Mapping[str, Array]]:
        if self.held_out:
            first = batches.count(self.calibration.directory) - self.held_out
            return itertools.islice(self.calibration.feeds(), first, None)
        return self.calibration.feeds()

    def accuracy(self, model: ir.Model) -> dict[str, float]:
        """Mean cosine, SQNR in dB and relative L2 of the worst output against the unquantized model."""
        # On disk: the outputs of a language model on all calibration data do not fit in memory.
        expected_in = self.scratch / "judge-reference"
        runner = self.calibration.runner
        if not expected_in.is_dir():
            batches.write(expected_in, (runner(self.reference, feeds) for feeds in self._scored()))
        comparison = Comparison(kind=self.kind)
        candidate = self.simulate(model)
        for expected, feeds in zip(batches.read(expected_in), self._scored(), strict=True):
            comparison.add(expected, runner(candidate, feeds), None)
        outputs = comparison.result("candidate").outputs
        infinite = float("inf")
        return {
            "cosine": min(item.cosine if item.cosine is not None else -1.0 for item in outputs),
            "sqnr_db": min(item.sqnr_db if item.sqnr_db is not None else -infinite for item in outputs),
            "relative_l2": max(item.relative_l2 if item.relative_l2 is not None else infinite for item in outputs),
        }

    def latency_ms(self, model: ir.Model) -> float:
        """Median latency of the built candidate on the first calibration batch, in milliseconds."""
        import statistics
        import time

        from passes import saving

        feeds = next(iter(self.calibration.feeds()))
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = Path(folder) / "model.onnx"
            saving.save(model, path)
            into = Path(folder) / "engine"
            into.mkdir()
            artifact = self.engine.build(BuildRequest(path, into, self.ranges), lambda *_: None)
            with self.engine.open(artifact.path) as session:
                call = session.prepare(feeds)
                samples = []
                for _ in range(25):
                    started = time.perf_counter_ns()
                    call()
                    samples.append((time.perf_counter_ns() - started) / 1e6)
        return statistics.median(samples[5:])
