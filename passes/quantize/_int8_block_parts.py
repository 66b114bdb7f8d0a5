"""A weight as 8-bit codes around 128 with a scale per block, in MatMulNBits' layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes import numerics
from passes.base import PassFailed
from passes.quantize._lazy import Parts, reading
from passes.quantize._weights import Weight
from passes.quantize._zero_blocks import silenced

ZERO = 128
"""What MatMulNBits subtracts from an 8-bit code where it is given no zero points."""

_SLAB = 1 << 22
"""Elements worked on at a time: float32 copies stay at 16 MB whatever the weight."""


class Int8BlockParts:
    """Codes and scales of one weight; evaluated when they are written.

    Args:
        weight: A weight of 2 dimensions.
        block_size: Elements along the summed axis that share a scale; the last block may be part empty.
    """

    def __init__(self, weight: Weight, block_size: int) -> None:
        self._weight, self._block = weight, block_size
        self._channels = weight.shape[weight.channel_axis]
        self._blocks = -(-weight.summed // block_size)

    def tensors(self) -> dict[str, ir.LazyTensor]:
        """`codes` `(N, K / block, block)` uint8 and `scales` `(N, K / block)` in the weight's type."""
        parts = Parts(self._compute)
        shape = (self._channels, self._blocks)
        return {
            "codes": parts.tensor("codes", "codes", ir.DataType.UINT8, (*shape, self._block)),
            "scales": parts.tensor("scales", "scales", self._weight.tensor.dtype, shape),
        }

    def _compute(self) -> dict[str, ir.TensorProtocol]:
        weight = self._weight
        padded = self._blocks * self._block
        codes = np.empty((self._channels, self._blocks, self._block), np.uint8)
        step = max(1, _SLAB // padded)
        with reading(weight.tensor) as stored:
            by_channel = stored if weight.axis == 1 else stored.T
            scales = np.empty((self._channels, self._blocks), stored.dtype)
            for first in range(0, self._channels, step):
                slab = np.zeros((min(step, self._channels - first), padded), np.float32)
                slab[:, : weight.summed] = by_channel[first : first + step]
                if not np.isfinite(slab).all():
                    raise PassFailed(
                        f"int8_blocks: weight '{weight.name}' cannot be quantized: it holds NaN or infinity. "
                        "Name its node under skip, or mend the weight."
                    )
                self._fill(slab, codes[first : first + step], scales[first : first + step])
            del by_channel, stored  # or the file stays mapped
        return {"codes": ir.Tensor(codes), "scales": ir.Tensor(scales)}

    def _fill(self, slab: npt.NDArray[np.float32], codes: npt.NDArray[np.uint8], scales: npt.NDArray[Any]) -> None:
        blocks = slab.reshape(len(slab), self._blocks, self._block)
        scale = numerics.symmetric_scale(np.abs(blocks).max(axis=2), numerics.INT8, scales.dtype)
        rounded = numerics.quantize(blocks, scale[:, :, None], numerics.INT8)
        codes[...] = (rounded.astype(np.int16) + ZERO).astype(np.uint8)
        scales[...] = silenced(codes, scale, ZERO)
