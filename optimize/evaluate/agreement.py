"""Whether two models decide alike: largest class, nearest neighbour."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimize.facts import Flip

Array = np.ndarray[Any, Any]

FLIPS_KEPT = 1000

NEIGHBOUR_SAMPLES = 4096
"""Embeddings kept for the nearest-neighbour search; later samples are not searched."""

NO_DECISION = -1
"""The decision of a row with a NaN: it agrees with none."""

IGNORED_LABEL = -1
"""Labels below zero (such as -100) mark positions that do not count."""

SAME_SIMILARITY = 1e-6
"""Two neighbours as near as this are equally near: duplicates among the samples."""


def decisions(output: Array) -> Array:
    """The class each row decides for: its largest entry's index along the last axis, or its integer itself.

    Args:
        output: (..., classes) floating-point scores, or (...) integer classes.

    Returns:
        (...) int64; `NO_DECISION` where a row has a NaN.
    """
    if output.dtype.kind in "iub":
        return output.astype(np.int64)
    scores = output.astype(np.float64)
    chosen: Array = scores.argmax(axis=-1).astype(np.int64)
    return np.where(np.isnan(scores).any(axis=-1), NO_DECISION, chosen)


def can_decide(output: Array) -> bool:
    """Whether an output can be read as classes: scores of at least two, or integers, per sample."""
    if output.dtype.kind in "iub":
        return output.ndim >= 1
    return output.dtype.kind not in "OSUc" and output.ndim >= 2 and output.shape[-1] >= 2


def is_probability(output: Array) -> bool:
    """Whether every row is a distribution: not negative, sum 1."""
    if not can_decide(output) or output.dtype.kind in "iub" or output.size == 0:
        return False
    scores = output.astype(np.float64)
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3))


def is_unit(output: Array) -> bool:
    """Whether every row of a (samples, width) output has norm 1, as embeddings for cosine search do."""
    if output.ndim != 2 or output.dtype.kind in "iubOSUc" or output.size == 0:
        return False
    return bool(np.allclose(np.linalg.norm(output.astype(np.float64), axis=1), 1.0, atol=1e-3))


class Decisions:
    """Counts samples whose decision is the same, and remembers those whose is not."""

    def __init__(self) -> None:
        self.total = 0
        self.same = 0
        self.flips: list[Flip] = []
        self.labelled = 0
        self.right_before = 0
        self.right_after = 0
        self.right_to_wrong = 0
        self.wrong_to_right = 0
        self.labels_fit = True

    def add(self, reference: Array, candidate: Array, labels: Array | None) -> None:
        """Take a batch of outputs. `labels` has the decisions' shape; any other shape is not counted."""
        before, after = decisions(reference).reshape(-1), decisions(candidate).reshape(-1)
        truth = None if labels is None else np.asarray(labels).reshape(-1)
        if truth is not None and truth.size != before.size:
            self.labels_fit, truth = False, None
        equal = (before == after) & (after != NO_DECISION)
        for index in np.flatnonzero(~equal)[: FLIPS_KEPT - len(self.flips)]:
            self.flips.append(
                Flip(
                    sample=self.total + int(index),
                    reference=int(before[index]),
                    candidate=int(after[index]),
                    label=None if truth is None else int(truth[index]),
                )
            )
        self.total += before.size
        self.same += int(equal.sum())
        if truth is not None:
            self._score(before, after, truth)

    def _score(self, before: Array, after: Array, truth: Array) -> None:
        counted = truth > IGNORED_LABEL
        was_right, is_right = (before == truth) & counted, (after == truth) & counted
        self.labelled += int(counted.sum())
        self.right_before += int(was_right.sum())
        self.right_after += int(is_right.sum())
        self.right_to_wrong += int((was_right & ~is_right).sum())
        self.wrong_to_right += int((~was_right & is_right).sum())

    @property
    def flips_total(self) -> int:
        """How many samples changed."""
        return self.total - self.same


class Neighbours:
    """Keeps embeddings of both sides, to compare each sample's nearest neighbour."""

    def __init__(self) -> None:
        self._reference: list[Array] = []
        self._candidate: list[Array] = []
        self.kept = 0

    def add(self, reference: Array, candidate: Array) -> None:
        """Take (samples, width) embeddings of both sides."""
        room = NEIGHBOUR_SAMPLES - self.kept
        if room > 0:
            self._reference.append(reference[:room].astype(np.float32))
            self._candidate.append(candidate[:room].astype(np.float32))
            self.kept += len(self._reference[-1])

    def agreement(self) -> float | None:
        """Share of samples with the same nearest neighbour (cosine); None below three samples."""
        if self.kept < 3:
            return None
        reference, candidate = _unit(np.concatenate(self._reference)), _unit(np.concatenate(self._candidate))
        same = 0
        for start in range(0, self.kept, 512):
            block = slice(start, start + 512)
            rows = np.arange(start, min(start + 512, self.kept))
            true_similarity = reference[block] @ reference.T
            similarity = candidate[block] @ candidate.T
            true_similarity[np.arange(len(rows)), rows] = -np.inf
            similarity[np.arange(len(rows)), rows] = -np.inf
            chosen = similarity.argmax(axis=1)
            valid = np.isfinite(candidate[block]).all(axis=1) & (np.abs(candidate[block]).sum(axis=1) > 0)
            best = true_similarity.max(axis=1)
            near = true_similarity[np.arange(len(rows)), chosen] >= best - SAME_SIMILARITY
            same += int((near & valid).sum())
        return same / self.kept


def _unit(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
