"""Calibration data without the batches for scoring candidates: no format is judged by what it was fitted to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from passes.base import Arrays, Calibration


@dataclasses.dataclass(frozen=True)
class WithoutLast:
    """Satisfies `passes.base.Calibration`.

    Attributes:
        whole: All calibration data.
        held_out: Batches at its end that are left out.
    """

    whole: Calibration
    held_out: int

    @property
    def samples(self) -> int:
        """Rows over the batches that are left."""
        return sum(max(len(array) if array.ndim else 1 for array in feeds.values()) for feeds in self.feeds())

    def feeds(self) -> Iterator[Arrays]:
        """The batches, in order."""
        yield from itertools.islice(self.whole.feeds(), self._left())

    def observe(self, model: ir.Model, values: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The named values of `model` per batch."""
        yield from itertools.islice(self.whole.observe(model, values), self._left())

    def _left(self) -> int:
        return sum(1 for _ in self.whole.feeds()) - self.held_out
