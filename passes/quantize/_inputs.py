"""What an INT8 matrix layer is given on the calibration data: its moments, and its means now and before."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from passes.quantize._learned import Learned
from passes.quantize._moments import Moments

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One activation, divided by its smoothing factors.

    Attributes:
        moments: Of the rows as the quantized layer sees them.
        exact_mean: (channels,) mean of the rows in the floating-point model.
        seen_mean: (channels,) mean of the rows as the quantized layer sees them.
    """

    moments: Moments
    exact_mean: Array
    seen_mean: Array


def inputs_of(learned: Learned, rows: Array, *, static: bool) -> Inputs:
    """From (rows, channels) of the floating-point model; `static`: the layer sees them on the quantizer's grid."""
    given = rows if learned.divisor is None else rows / learned.divisor
    seen = learned.quantizer.apply(given) if static else given
    own = (seen.T @ seen).astype(np.float64) / max(len(seen), 1)
    return Inputs(Moments(own), given.mean(axis=0), seen.mean(axis=0))
