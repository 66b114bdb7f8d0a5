"""Real calibration for tests: batches in memory, inner values observed with ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from passes.base import Arrays
from tests.support import runner


@dataclasses.dataclass(frozen=True)
class Batches:
    """Satisfies `passes.base.Calibration`. The first axis of every array counts samples."""

    batches: tuple[Arrays, ...]

    @property
    def samples(self) -> int:
        """Rows over all batches."""
        return sum(len(next(iter(batch.values()))) for batch in self.batches)

    def feeds(self) -> Iterator[Arrays]:
        """The batches, in order."""
        yield from self.batches

    def observe(self, model: ir.Model, values: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The named values per batch, from one session."""
        taken = {str(value.name) for value in model.graph.inputs}
        inner = [name for name in values if name not in taken]
        session = runner.session(model, inner) if inner else None
        for batch in self.batches:
            feeds = {key: array for key, array in batch.items() if key in taken}
            observed = dict(zip(inner, session.run(inner, feeds), strict=True)) if session else {}
            observed.update({name: np.asarray(feeds[name]) for name in values if name in taken})
            yield observed


def normal(shape: tuple[int, ...], batches: int = 4, seed: int = 0, name: str = "x", scale: float = 1.0) -> Batches:
    """Batches of normally distributed float32 for one input."""
    rng = np.random.default_rng(seed)
    return Batches(tuple({name: rng.normal(0, scale, shape).astype(np.float32)} for _ in range(batches)))
