"""Rounding weights so that the layer's output errs least on real activations, and correcting its bias.

Column by column of the input channels: round one, and let the channels still unrounded make up for its error
(GPTQ, Frantar et al. 2022, after Optimal Brain Surgeon): with H = xᵀx + damping and U the upper Cholesky factor of
H⁻¹, an error e in channel i adds e / U[i,i] * U[i,j] to every later channel j.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DAMPING = 0.01
"""Fraction of H's mean diagonal added to it (the paper's value)."""

BLOCK = 64
"""Input channels rounded before their errors are passed on to the rest in one product."""


def least_output_error(weight: Array, rows: Array, scale: Array, highest: int = 127) -> Array:
    """int8 elements of a weight, rounded for the least squared output error.

    Args:
        weight: (in, out) real numbers.
        rows: (rows, in) activations as the quantized layer sees them.
        scale: (out,) one step in real units per output channel.
        highest: Largest magnitude of an element.

    Returns:
        (in, out) int8.
    """
    left = weight.astype(np.float64)
    factor = _inverse_factor(rows)
    quantized = np.empty(weight.shape, np.int8)
    step = scale.astype(np.float64)
    channels = len(left)
    for start in range(0, channels, BLOCK):
        end = min(start + BLOCK, channels)
        errors = np.empty((end - start, left.shape[1]))
        for channel in range(start, end):
            nearest = np.clip(np.rint(left[channel] / step), -highest, highest)
            quantized[channel] = nearest
            error = (left[channel] - nearest * step) / factor[channel, channel]
            errors[channel - start] = error
            left[channel + 1 : end] -= np.outer(factor[channel, channel + 1 : end], error)
        left[end:] -= factor[start:end, end:].T @ errors
    return quantized


def _inverse_factor(rows: Array) -> Array:
    """U with UᵀU = (xᵀx / rows + damping)⁻¹, upper triangular."""
    x = rows.astype(np.float32)
    hessian = (x.T @ x).astype(np.float64) / max(len(x), 1)
    diagonal = np.diagonal(hessian)
    damping = DAMPING * float(diagonal.mean()) or 1.0
    hessian[np.diag_indices_from(hessian)] += damping
    factor: Array = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return factor


def bias_correction(exact: Array, quantized: Array, rows: Array, seen: Array) -> Array:
    """(out,) mean of what a layer's output lost, to be added to its bias.

    Args:
        exact: (in, out) the weight in floating point.
        quantized: (in, out) the weight as the engine sees it, in the smoothed channels.
        rows: (rows, in) sample of the activation.
        seen: (rows, in) the same, divided by the smoothing factors and quantized.
    """
    lost: Array = rows.mean(axis=0) @ exact - seen.mean(axis=0) @ quantized
    return lost.astype(np.float32)
