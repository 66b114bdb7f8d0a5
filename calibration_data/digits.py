"""Handwritten digits, 8 × 8 pixels, from scikit-learn, in three disjoint splits."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

TRAIN, CALIBRATION = 1100, 200
"""Images per split; the remaining 497 are held out."""

BRIGHTEST = 16.0
"""Pixels count dark squares of a 4 × 4 block: 0 to 16."""


def training(seed: int = 0) -> dict[str, np.ndarray]:
    """Images to train on: `image` (1100, 1, 8, 8) float32 from 0 to 1, `label` (1100,) int64."""
    return _split(seed, slice(0, TRAIN))


def calibration(samples: int = CALIBRATION, seed: int = 0) -> dict[str, np.ndarray]:
    """Images to calibrate with, without labels."""
    return {"image": _split(seed, slice(TRAIN, TRAIN + CALIBRATION))["image"][:samples]}


def evaluation(seed: int = 0) -> dict[str, np.ndarray]:
    """Held-out images with labels."""
    return _split(seed, slice(TRAIN + CALIBRATION, None))


def _split(seed: int, rows: slice) -> dict[str, np.ndarray]:
    digits = load_digits()
    chosen = np.random.default_rng(seed).permutation(len(digits.target))[rows]
    images = (digits.images[chosen] / BRIGHTEST).astype(np.float32)
    return {"image": images[:, np.newaxis], "label": digits.target[chosen].astype(np.int64)}
