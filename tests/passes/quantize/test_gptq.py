"""Rounding with feedback is optimal brain surgery, whatever the grid: compared with its plain form in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from passes.quantize._gptq import damped, round_with_feedback


def plain(weight: np.ndarray, moments: np.ndarray, scales: np.ndarray, block: int, highest: int) -> np.ndarray:
    """Row after row in order of falling energy; the inverse of the rows left is taken anew each time."""
    hessian = damped(moments)
    order = np.argsort(-np.diag(moments), kind="stable")
    left, steps = weight.astype(np.float64), np.zeros(weight.shape)
    for position, row in enumerate(order):
        rest = order[position:]
        inverse = np.linalg.inv(hessian[np.ix_(rest, rest)])
        scale = scales[row // block]
        steps[row] = np.clip(np.rint(left[row] / scale), -highest, highest)
        error = left[row] - steps[row] * scale
        left[rest] -= np.outer(inverse[:, 0] / inverse[0, 0], error)
    return steps


@pytest.mark.parametrize(("block", "highest"), [(16, 7), (48, 127)])
def test_steps_are_those_of_the_plain_form(block: int, highest: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 48)) + 0.3 * rng.normal(size=(200, 48))
    moments = rows.T @ rows / 200
    weight = rng.normal(size=(48, 10)).astype(np.float32)
    scales = (np.abs(weight.reshape(-1, block, 10)).max(axis=1) / highest).astype(np.float32)

    def grid(steps: np.ndarray, index: int) -> np.ndarray:
        return np.clip(np.rint(steps), -highest, highest)

    got = round_with_feedback(weight, moments, scales, block, grid)
    wanted = plain(weight, moments, scales, block, highest)
    # float32 against float64: an element between two steps may fall to either side, and pass that on.
    assert (got == wanted).mean() > 0.97
    step = np.repeat(scales, block, axis=0)

    def loss(steps: np.ndarray) -> float:
        error = weight - steps * step
        return float(np.sum(error * (moments @ error)))

    nearest = np.clip(np.rint(weight / step), -highest, highest)
    assert loss(got) == pytest.approx(loss(wanted), rel=0.05)
    assert loss(got) < 0.6 * loss(nearest)
