"""How far one output is from the original's: sums over batches, constant memory, no way to hide a NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optimize.facts import OutputAccuracy

Array = np.ndarray[Any, Any]

CHUNK_ELEMENTS = 1 << 20
"""Elements turned into float64 at once: 8 MiB a side."""

NEGLIGIBLE_NORM = 1e-6
"""A row of this norm counts as zero beside a reference row that is zero."""


class Distance:
    """Collects one output's figures batch by batch.

    Zeros: zero against zero has no relative distance, no SQNR and no cosine (None); anything else against a
    reference that is all zero is infinitely far. A candidate row that is zero where the reference is not has
    cosine 0, and so has one that is not where it is.

    Not finite: where the reference is NaN or infinite the candidate must be the same, and such places count
    no further. A candidate that is not finite where the reference is makes every distance infinite.

    Args:
        output: The output's name.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self.samples = 0
        self.failure: str | None = None
        self.not_finite_in_reference = 0
        self._elements = 0
        self._max_abs = 0.0
        self._sum_abs = 0.0
        self._reference_square = 0.0
        self._error_square = 0.0
        self._cosines = 0
        self._cosine_sum = 0.0
        self._cosine_min = math.inf
        self._nan = 0
        self._inf = 0

    def add(self, reference: Array, candidate: Array) -> bool:
        """Take one batch; False when the two cannot be compared (`failure` says why)."""
        problem = _unlike(reference, candidate)
        if problem:
            self.failure = self.failure or problem
            return False
        if reference.dtype.kind in "OSU":
            self._add_text(reference, candidate)
            return True
        rows = reference.shape[0] if reference.ndim else 1
        self.samples += rows
        if reference.size == 0:
            return True
        left, right = reference.reshape(rows, -1), candidate.reshape(rows, -1)
        step = max(1, CHUNK_ELEMENTS // left.shape[1])
        for start in range(0, rows, step):
            self._add_rows(_real(left[start : start + step]), _real(right[start : start + step]))
        return True

    def result(self) -> OutputAccuracy:
        """The figures so far."""
        broken = self._nan + self._inf > 0
        failure = self.failure
        if failure is None and broken:
            failure = f"{self._nan} NaN and {self._inf} infinite values where the original is finite"
        if failure is None and self.samples == 0:
            failure = "no sample was compared"
        if self._elements == 0 and not broken:
            return OutputAccuracy(output=self.output, samples=self.samples, failure=failure)
        relative, sqnr = self._relative()
        return OutputAccuracy(
            output=self.output,
            samples=self.samples,
            max_abs=math.inf if broken else self._max_abs,
            mean_abs=math.inf if broken else self._sum_abs / self._elements,
            relative_l2=math.inf if broken else relative,
            sqnr_db=-math.inf if broken else sqnr,
            cosine=self._cosine_sum / self._cosines if self._cosines else None,
            cosine_min=self._cosine_min if self._cosines else None,
            nan=self._nan,
            inf=self._inf,
            failure=failure,
        )

    def _relative(self) -> tuple[float | None, float | None]:
        if self._reference_square == 0.0:
            return (None, None) if self._error_square == 0.0 else (math.inf, -math.inf)
        if self._error_square == 0.0:
            return 0.0, math.inf
        ratio = self._error_square / self._reference_square
        return math.sqrt(ratio), -10 * math.log10(ratio) if ratio > 0 else math.inf

    def _add_rows(self, reference: Array, candidate: Array) -> None:
        """Both (rows, elements) float64."""
        finite = np.isfinite(reference)
        if not finite.all():
            self._add_not_finite(reference[~finite], candidate[~finite])
        nan, inf = np.isnan(candidate) & finite, np.isinf(candidate) & finite
        self._nan += int(nan.sum())
        self._inf += int(inf.sum())
        spoiled: Array = np.any(nan | inf, axis=1)
        usable = finite & ~nan & ~inf
        reference = np.where(usable, reference, 0.0)
        candidate = np.where(usable, candidate, 0.0)
        error = np.abs(candidate - reference)
        self._elements += int(usable.sum())
        self._max_abs = max(self._max_abs, float(error.max(initial=0.0)))
        self._sum_abs += float(error.sum())
        self._reference_square += float(np.vdot(reference, reference))
        self._error_square += float(np.vdot(error, error))
        self._add_cosines(reference, candidate, spoiled, error.any(axis=1))

    def _add_not_finite(self, reference: Array, candidate: Array) -> None:
        self.not_finite_in_reference += reference.size
        same = (reference == candidate) | (np.isnan(reference) & np.isnan(candidate))
        wrong = int((~same).sum())
        if wrong:
            self.failure = self.failure or f"{wrong} values differ where the original is NaN or infinite"

    def _add_cosines(self, reference: Array, candidate: Array, spoiled: Array, differs: Array) -> None:
        left, right = _norms(reference), _norms(candidate)
        has_one = (left > 0) | (right > NEGLIGIBLE_NORM) | spoiled
        if not has_one.any():
            return
        both = (left > 0) & (right > 0) & ~spoiled
        scale_left = np.where(left > 0, left, 1.0)[:, None]
        scale_right = np.where(right > 0, right, 1.0)[:, None]
        dots = np.einsum("ij,ij->i", reference / scale_left, candidate / scale_right)
        dots = np.where(differs, dots, 1.0)  # rounding would leave equal rows a little short of 1
        cosines = np.where(both, np.clip(dots, -1.0, 1.0), 0.0)[has_one]
        self._cosines += len(cosines)
        self._cosine_sum += float(cosines.sum())
        self._cosine_min = min(self._cosine_min, float(cosines.min()))

    def _add_text(self, reference: Array, candidate: Array) -> None:
        self.samples += reference.shape[0] if reference.ndim else 1
        wrong = int(np.sum(reference != candidate))
        if wrong:
            self.failure = self.failure or f"{wrong} of {reference.size} strings differ"


def _unlike(reference: Array, candidate: Array) -> str | None:
    if reference.shape != candidate.shape:
        return f"shape {list(candidate.shape)}, expected {list(reference.shape)}"
    left, right = _family(reference), _family(candidate)
    return None if left == right else f"type {candidate.dtype}, expected {reference.dtype}"


def _family(array: Array) -> str:
    if array.dtype.kind in "OSU":
        return "text"
    if array.dtype.kind in "iub":
        return "bool" if array.dtype.kind == "b" else "integer"
    return "complex" if array.dtype.kind == "c" else "float"


def _real(rows: Array) -> Array:
    """Rows as float64; a complex number counts as two."""
    if rows.dtype.kind == "c":
        return np.ascontiguousarray(rows, np.complex128).view(np.float64)
    return rows.astype(np.float64)


def _norms(rows: Array) -> Array:
    """Norm of each row, safe from overflow for finite float32 rows in float64."""
    norms: Array = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms
