"""Blocks of zeros in MatMulNBits get the scale 0, so that nothing but 0 comes out of them.

ONNX Runtime's kernel sums code * x and zero point * x apart and takes their difference, each rounded on its own.
Under the scale 1, which a block without a range would have, that leaves 1e-5 to 5e-4 of what flows in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def silenced(codes: Bytes, scales: npt.NDArray[Any], zero: Bytes | int) -> npt.NDArray[Any]:
    """The scales, 0 where all of a block's codes stand for 0 and any scale gives the same weights.

    Args:
        codes: `(N, blocks, bytes)`, a multiple of 8 bytes per block.
        scales: `(N, blocks)`.
        zero: What a byte of zeros looks like, for all blocks or `(N, blocks)`.
    """
    words = np.ascontiguousarray(codes).view(np.uint64)
    wanted = np.asarray(zero, np.uint64) * np.uint64(0x0101010101010101)
    empty = (words == wanted[..., None]).all(axis=-1)
    return np.where(empty, scales.dtype.type(0), scales)
