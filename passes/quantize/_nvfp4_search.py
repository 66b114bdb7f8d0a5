"""NVFP4 block scales by least squared error: each block tries several elements for its largest magnitude to become.

6 uses the whole grid, 4 avoids its widest gap (Cook et al., "Four Over Six", 2025, tries these two).
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from passes import block_formats

Float32 = npt.NDArray[np.float32]

TRIALS = (6.0, 5.5, 5.0, 4.5, 4.0, 3.5)
_TRIALS = np.array(TRIALS, np.float32).reshape(-1, 1, 1)

_ONE, _LARGEST = np.float32(1), np.finfo(np.float32).max

SATURATES = 6.9
"""Above 7 the rounding below would give 8. Only a scale at the end of E4M3's range puts an element there."""


_held = threading.local()


def _scratch(shape: tuple[int, ...]) -> Float32:
    """Four arrays of this shape that the thread keeps: fresh ones cost as much in page faults as the arithmetic."""
    arrays: Float32 | None = getattr(_held, "arrays", None)
    if arrays is None or arrays.shape[1:] != shape:
        arrays = np.empty((4, *shape), np.float32)
        _held.arrays = arrays
    return arrays


def least_squared_error(values: Float32, amax: Float32, global_scale: np.float32) -> Float32:
    """The E4M3 block scale, in float32, of the trial with the least squared error; of equal ones the first.

    Errors are taken of magnitudes in units of the step. A tie between two elements errs alike either way, which
    leaves the rounding free: with c = 2**22 * max(t, 1), a float32 near c has no digits below half of t's own
    power of two, at least 0.5, which is E2M1's spacing at t; so (t + c) - c is an element nearest to t.

    Args:
        values: `(1, block, blocks)`.
        amax: `(1, 1, blocks)`, the blocks' largest magnitudes.
        global_scale: The tensor's scale.
    """
    magnitude, steps, anchor, error = _scratch(values.shape)
    np.abs(values, out=magnitude)
    scales = block_formats.nvfp4_block_step(amax, global_scale, _TRIALS)
    least = np.full(amax.shape, np.inf, np.float32)
    best: Float32 = scales[0]
    for scale in np.split(scales, len(TRIALS)):
        step = scale * global_scale
        np.divide(magnitude, step, out=steps)
        np.clip(steps, _ONE, _LARGEST, out=anchor)  # with a scalar three times as fast as np.maximum
        np.multiply(anchor, np.float32(2**22), out=anchor)
        np.add(steps, anchor, out=error)
        np.subtract(error, anchor, out=error)
        if float((amax / step).max(initial=0)) > SATURATES:
            np.clip(error, np.float32(0), np.float32(6), out=error)
        np.subtract(error, steps, out=error)
        squared = np.einsum("obi,obi->oi", error, error)[:, None, :] * np.square(scale)
        better = squared < least
        least = np.where(better, squared, least)
        best = np.where(better, scale, best)
    return best
