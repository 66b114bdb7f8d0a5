"""A stage's outputs against the original's, batch by batch: distances, agreement, task metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optimize.errors import StageFailed, UsageError
from optimize.evaluate.agreement import Decisions, Neighbours, can_decide, is_probability, is_unit
from optimize.evaluate.distance import Distance
from optimize.facts import AccuracyResult, OutputAccuracy
from optimize.user_code import errors_of_user

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Kind = Literal["auto", "classification", "embedding", "regression"]
Metric = Callable[[Arrays, Array | None], Mapping[str, float]]
"""A user's metric: all outputs (samples concatenated) and labels to named values, higher is better."""


class Comparison:
    """Collects batches of two models' outputs on the same inputs.

    Memory stays constant but for embeddings of up to 4096 samples, at most 1000 changed decisions, and,
    only when there is a user's metric, all outputs.

    Args:
        kind: Which agreement to report. "auto" takes classification where there are labels or outputs that
            are distributions, embedding where rows have norm 1, else neither.
        metric: A user's metric.
    """

    def __init__(self, kind: Kind = "auto", metric: Metric | None = None) -> None:
        self._kind = kind
        self._metric = metric
        self._batches = 0
        self._distances: dict[str, Distance] = {}
        self._extra: dict[str, None] = {}
        self._decisions: dict[str, Decisions] = {}
        self._neighbours: dict[str, Neighbours] = {}
        self._kinds: dict[str, Kind] = {}
        self._kept: list[tuple[dict[str, Array], dict[str, Array], Array | None]] = []

    def add(self, reference: Arrays, candidate: Arrays, labels: Array | None = None) -> None:
        """Take one batch: the original's outputs, the candidate's, and labels of its samples."""
        self._batches += 1
        for name in candidate:
            if name not in reference:
                self._extra[name] = None
        for name, expected in reference.items():
            distance = self._distances.setdefault(name, Distance(name))
            got = candidate.get(name)
            if got is None:
                distance.failure = distance.failure or "missing"
            elif distance.add(expected, got):
                self._agree(name, expected, got, labels)
        if self._metric is not None:
            self._kept.append((dict(reference), dict(candidate), labels))

    def result(self, stage: str) -> AccuracyResult:
        """Everything collected so far.

        Raises:
            StageFailed: When no batch was added.
            UsageError: When the user's metric fails, or returns something else than names with numbers.
            BackendMissing: When it imports a library that is not installed.
        """
        if self._batches == 0:
            raise StageFailed(f"accuracy of '{stage}': there was no evaluation data to compare on.")
        outputs = [self._output(name) for name in self._distances]
        outputs += [OutputAccuracy(output=name, failure="the original has no such output") for name in self._extra]
        judged = next((found for found in self._decisions.values() if found.labelled), None)
        judged = judged or next(iter(self._decisions.values()), None)
        metrics, before = self._task_metrics(judged)
        return AccuracyResult(
            stage=stage,
            outputs=tuple(outputs),
            metrics=metrics,
            reference_metrics=before,
            decisions=judged.total if judged else 0,
            flips=tuple(judged.flips) if judged else (),
            flips_total=judged.flips_total if judged else 0,
            flips_worse=judged.right_to_wrong if judged and judged.labelled else None,
            flips_better=judged.wrong_to_right if judged and judged.labelled else None,
            notes=tuple(self._notes(judged)),
        )

    def _agree(self, name: str, expected: Array, got: Array, labels: Array | None) -> None:
        kind = self._kinds.setdefault(name, self._kind_of(expected, labels))
        if kind == "classification" and can_decide(expected):
            self._decisions.setdefault(name, Decisions()).add(expected, got, labels)
        if kind == "embedding" and expected.ndim == 2 and expected.dtype.kind not in "iubOSUc":
            self._neighbours.setdefault(name, Neighbours()).add(expected, got)

    def _kind_of(self, expected: Array, labels: Array | None) -> Kind:
        if self._kind != "auto":
            return self._kind
        if is_probability(expected) or (labels is not None and _fits(expected, labels)):
            return "classification"
        return "embedding" if is_unit(expected) else "regression"

    def _output(self, name: str) -> OutputAccuracy:
        figures = self._distances[name].result()
        agreement: dict[str, float | None] = {}
        if name in self._decisions and self._decisions[name].total:
            agreement["top1_agreement"] = self._decisions[name].same / self._decisions[name].total
        if name in self._neighbours:
            agreement["neighbour_agreement"] = self._neighbours[name].agreement()
        return figures.model_copy(update=agreement)

    def _task_metrics(self, judged: Decisions | None) -> tuple[dict[str, float], dict[str, float]]:
        after: dict[str, float] = {}
        before: dict[str, float] = {}
        if judged is not None and judged.labelled:
            after["top1"] = judged.right_after / judged.labelled
            before["top1"] = judged.right_before / judged.labelled
        if self._metric is not None:
            labels = _joined([labels for _, _, labels in self._kept if labels is not None])
            before.update(self._user_metric([reference for reference, _, _ in self._kept], labels))
            after.update(self._user_metric([candidate for _, candidate, _ in self._kept], labels))
        return after, before

    def _user_metric(self, batches: list[dict[str, Array]], labels: Array | None) -> dict[str, float]:
        assert self._metric is not None
        shared = [name for name in batches[0] if all(name in batch for batch in batches)]
        outputs = {
            name: joined for name in shared if (joined := _joined([batch[name] for batch in batches])) is not None
        }
        code = getattr(self._metric, "__code__", None)
        with errors_of_user(Path(code.co_filename) if code else None, what="evaluate.metric failed"):
            found: Any = self._metric(outputs, labels)
        try:
            return {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"evaluate.metric returned {type(found).__name__}, not names with numbers: {error}.",
                hint="It gets ({output: array of all samples}, labels or None) and returns {name: value}.",
            ) from error

    def _notes(self, judged: Decisions | None) -> list[str]:
        notes = []
        for distance in self._distances.values():
            if distance.not_finite_in_reference:
                notes.append(
                    f"'{distance.output}': {distance.not_finite_in_reference:,} values of the original are "
                    "NaN or infinite; they were only compared for being the same."
                )
        if judged is not None and not judged.labels_fit:
            notes.append("The labels do not fit the decisions, one per sample, and were not used.")
        return notes


def _fits(output: Array, labels: Array) -> bool:
    """Whether `labels` name one class per decision of `output`."""
    if not can_decide(output) or np.asarray(labels).dtype.kind not in "iub":
        return False
    shape = output.shape if output.dtype.kind in "iub" else output.shape[:-1]
    return int(np.prod(shape)) == np.asarray(labels).size


def _joined(parts: list[Array]) -> Array | None:
    """All samples in one array; of differing sizes beside the first axis, as an array of arrays."""
    if not parts:
        return None
    if all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts):
        return np.concatenate(parts)
    rows = [row for part in parts for row in (part if part.ndim else part[None])]
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged
