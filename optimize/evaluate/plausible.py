"""Whether the original itself makes sense on the evaluation data; nothing can be judged against it else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from optimize.evaluate.agreement import IGNORED_LABEL, can_decide, decisions

Array = np.ndarray[Any, Any]

CHANCE_SAMPLES = 30
"""Below this many labelled samples, chance cannot be told from bad luck."""

SAME = 1e-7
"""Relative spread below which outputs of different samples are the same number."""


def implausible(batches: Iterable[tuple[Mapping[str, Array], Array | None]]) -> str | None:
    """Why the original's outputs cannot be a baseline, in a plain sentence, or None.

    Args:
        batches: The original's outputs and the labels (or None), batch by batch; read once.

    Returns:
        A sentence when an output holds NaN or nothing finite, when no output depends on the sample, or when
        labelled samples are classified no better than by guessing.
    """
    spreads: dict[str, _Spread] = {}
    guesses: dict[str, _Guess] = {}
    for outputs, labels in batches:
        for name, output in outputs.items():
            if output.dtype.kind in "OSU":
                continue
            problem = _not_finite(name, output)
            if problem:
                return problem
            spreads.setdefault(name, _Spread()).add(output)
            if labels is not None:
                guesses.setdefault(name, _Guess()).add(output, np.asarray(labels))
    if not spreads or all(spread.samples == 0 for spread in spreads.values()):
        return "The evaluation data is empty: the original gave no outputs."
    if all(spread.samples > 1 and spread.is_constant for spread in spreads.values()):
        samples = max(spread.samples for spread in spreads.values())
        return (
            f"The original gives the same output for all {samples:,} evaluation samples: it ignores its "
            "inputs, its weights are missing, or the data is all alike."
        )
    return next((sentence for guess in guesses.values() if (sentence := guess.sentence())), None)


def _not_finite(name: str, output: Array) -> str | None:
    if output.dtype.kind in "iub":
        return None
    values = output if output.dtype.kind == "c" else output.astype(np.float64)
    nan = int(np.isnan(values).sum())
    if nan:
        return (
            f"The original itself gives NaN in output '{name}' ({nan:,} of {values.size:,} values): "
            "check its weights and the evaluation data."
        )
    if values.size and not np.isfinite(values).any():
        return f"The original's output '{name}' is infinite throughout: check its weights and inputs."
    return None


class _Spread:
    """Whether an output is the same for all samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.is_constant = True
        self._first: Array | None = None

    def add(self, output: Array) -> None:
        samples = output.shape[0] if output.ndim else 1
        self.samples += samples
        if not self.is_constant or output.size == 0:
            return
        rows = output.reshape(samples, -1)
        if self._first is None:
            self._first = rows[0].astype(np.float64) if rows.dtype.kind != "c" else rows[0]
        if rows.shape[1] != self._first.shape[0]:
            self.is_constant = False
            return
        with np.errstate(invalid="ignore"):
            gap = np.abs(rows.astype(self._first.dtype) - self._first)
        largest = float(np.nan_to_num(np.abs(self._first), posinf=0.0).max())
        self.is_constant = not bool((gap > SAME * largest).any())


class _Guess:
    """Whether labelled samples are classified better than by guessing."""

    def __init__(self) -> None:
        self.samples = 0
        self.right = 0
        self.classes = 0

    def add(self, output: Array, labels: Array) -> None:
        if not can_decide(output) or output.dtype.kind in "iub" or labels.dtype.kind not in "iub":
            return
        chosen = decisions(output)
        if chosen.size != labels.size:
            return
        truth = labels.reshape(-1)
        counted = truth > IGNORED_LABEL
        self.samples += int(counted.sum())
        self.right += int((chosen.reshape(-1) == truth)[counted].sum())
        self.classes = output.shape[-1]

    def sentence(self) -> str | None:
        if self.samples < CHANCE_SAMPLES or self.classes < 2:
            return None
        chance = 1 / self.classes
        accuracy = self.right / self.samples
        if accuracy > chance + math.sqrt(chance * (1 - chance) / self.samples):
            return None
        return (
            f"The original is right on {accuracy:.1%} of {self.samples:,} labelled samples, no better than "
            f"guessing among {self.classes} classes: check that weights are loaded and labels fit."
        )
