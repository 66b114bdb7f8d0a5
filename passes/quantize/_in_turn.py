"""Layer inputs in the model as quantized so far, beside the same inputs in the model as it was.

Each layer can then be calibrated on what it will really be given, and make good for what was lost before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from passes.base import Calibration

Array = np.ndarray[Any, np.dtype[Any]]

EXACT_BYTES = 256 << 20
"""Most bytes of the original's inputs that are kept; as many layers as fit are observed in one run of the data."""


class InTurn:
    """Observes one model while it changes.

    Args:
        model: The model that is being quantized.
        original: The model as it was; a clone, or the numbers change with `model`.
        calibration: The data, run through both.
        names: The values that will be asked for, in that order.
    """

    def __init__(
        self,
        model: ir.Model,
        original: ir.Model,
        calibration: Calibration,
        names: Sequence[str],
    ) -> None:
        self._model = model
        self._original = original
        self._calibration = calibration
        self._waiting = list(names)
        self._kept: dict[str, list[Array]] = {}
        self._widest = 0

    def pairs(self, name: str) -> Iterator[tuple[Array, Array]]:
        """Per batch, the value now and as it was: `(rows, channels)` float32 both."""
        if name not in self._kept:
            self._keep_from(name)
        before = self._kept[name]
        for batch, seen in enumerate(self._calibration.observe(reaching(self._model, [name]), [name])):
            yield _rows(seen[name]), before[batch]
        del self._kept[name]

    def _keep_from(self, name: str) -> None:
        """Observe `name` in the original and, once it is known how much one value takes, those after it."""
        start = self._waiting.index(name)
        fits = max(1, EXACT_BYTES // self._widest) if self._widest else 1
        group = self._waiting[start : start + fits]
        kept: dict[str, list[Array]] = {item: [] for item in group}
        for seen in self._calibration.observe(reaching(self._original, group), group):
            for item in group:
                kept[item].append(_rows(seen[item]))
        self._kept.update(kept)
        self._widest = max(self._widest, *(sum(array.nbytes for array in arrays) for arrays in kept.values()))


def reaching(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that computes the named values of the main graph and nothing else; weights are shared with `model`."""
    copy = model.clone()
    made = {str(output.name): output for node in copy.graph for output in node.outputs}
    if not set(names) <= set(made):
        return copy
    copy.graph.outputs[:] = [made[name] for name in dict.fromkeys(names)]
    RemoveUnusedNodesPass()(copy)
    return copy


def _rows(array: Array) -> Array:
    rows: Array = array.reshape(-1, array.shape[-1]).astype(np.float32)
    return rows
