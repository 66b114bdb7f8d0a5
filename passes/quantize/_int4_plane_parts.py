"""A weight as two 4-bit planes, the second quantizing what the first left over."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes import numerics
from passes.base import PassFailed
from passes.quantize._blocks import SYMMETRIC_ZERO, quantize_blocks
from passes.quantize._lazy import Parts, reading
from passes.quantize._scales import from_range
from passes.quantize._weights import Weight
from passes.quantize._zero_blocks import silenced

Array = npt.NDArray[Any]


class PlaneParts:
    """Codes and scales of both planes, stacked along the axis that the product sums over; evaluated late.

    Args:
        weight: A weight of 2 dimensions, its summed axis a multiple of `block_size`.
        block_size: Elements along the summed axis that share a scale.
        by_column: MatMulNBits' layout instead of DequantizeLinear's.
    """

    def __init__(self, weight: Weight, block_size: int, *, by_column: bool) -> None:
        self._weight, self._block, self._by_column = weight, block_size, by_column
        self._channels = weight.shape[weight.channel_axis]
        self._blocks = weight.summed // block_size

    @property
    def shape(self) -> tuple[int, ...]:
        """The stacked weight's shape: twice as long along the summed axis."""
        weight = self._weight
        return tuple(2 * size if axis == weight.axis else size for axis, size in enumerate(weight.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, ir.LazyTensor]:
        """`codes` and `scales`, in the order the operators take them."""
        dtype = self._weight.tensor.dtype
        if self._by_column:
            shapes = {
                "codes": (ir.DataType.UINT8, (self._channels, 2 * self._blocks, self._block // 2)),
                "scales": (dtype, (self._channels, 2 * self._blocks)),
            }
        else:
            axis = self._weight.axis
            grid = tuple(
                2 * self._blocks if place == axis else size for place, size in enumerate(self._weight.shape)
            )
            shapes = {"codes": (ir.DataType.INT4, self.shape), "scales": (dtype, grid)}
        parts = Parts(self._compute)
        return {part: parts.tensor(part, part, kind, shape) for part, (kind, shape) in shapes.items()}

    def _compute(self) -> dict[str, ir.TensorProtocol]:
        weight = self._weight
        with reading(weight.tensor) as stored:
            scale_dtype = stored.dtype
            # (K, N), whatever the stored order; float32, so that what is left over is exact.
            rest = np.array(stored if weight.axis == 0 else stored.T, np.float32)
            del stored  # or the file stays mapped
        codes, scales = [], []
        for _ in range(2):
            try:
                made = quantize_blocks(
                    rest, 0, self._block, from_range(scale_dtype, asymmetric=False),
                    scale_dtype=scale_dtype, by_column=True,
                )  # fmt: skip
            except ValueError as fault:
                raise PassFailed(
                    f"int4_planes: weight '{weight.name}' cannot be quantized: {fault}. Name its node under "
                    "skip, or mend the weight."
                ) from fault
            codes.append(made.codes.reshape(self._channels, self._blocks, self._block // 2))
            scales.append(made.scales.reshape(self._channels, self._blocks))
            rest -= self._restored(codes[-1], scales[-1])
        packed, steps = np.concatenate(codes, axis=1), np.concatenate(scales, axis=1)
        if self._by_column:
            zero = SYMMETRIC_ZERO * 0x11
            return {"codes": ir.Tensor(packed), "scales": ir.Tensor(silenced(packed, steps, zero))}
        elements = self._signed(packed)
        if weight.axis == 0:
            elements, steps = elements.T, np.ascontiguousarray(steps.T)
        nibbles = numerics.pack_4bit(np.ascontiguousarray(elements).astype(numerics.INT4.dtype))
        return {
            "codes": ir.PackedTensor(nibbles, ir.DataType.INT4, shape=self.shape),
            "scales": ir.Tensor(steps),
        }

    def _signed(self, packed: Array) -> npt.NDArray[np.int8]:
        """`(channels, blocks, block / 2)` bytes → `(channels, blocks · block)` elements, -8 to 7."""
        low, high = packed & 0xF, packed >> 4
        return (np.stack((low, high), axis=-1).reshape(self._channels, -1)).astype(np.int8) - SYMMETRIC_ZERO

    def _restored(self, packed: Array, scales: Array) -> npt.NDArray[np.float32]:
        """What one plane stands for, `(K, N)` float32."""
        blocks = self._signed(packed).reshape(self._channels, self._blocks, self._block)
        values = blocks.astype(np.float32) * scales.astype(np.float32)[:, :, None]
        return values.reshape(self._channels, -1).T
