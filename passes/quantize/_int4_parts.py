"""The tensors that a 4-bit weight is stored as, evaluated when they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes import numerics
from passes.base import PassFailed
from passes.quantize._blocks import SYMMETRIC_ZERO, Blocks, quantize_blocks
from passes.quantize._gptq import quantize_calibrated
from passes.quantize._lazy import Parts, reading
from passes.quantize._moments import Moments
from passes.quantize._scales import Algorithm, chooser
from passes.quantize._weights import Weight
from passes.quantize._zero_blocks import silenced

Array = npt.NDArray[Any]


class Int4Parts:
    """Codes, scales and zero points of one weight.

    Args:
        weight: The weight.
        block_size: Elements along the summed axis that share a scale; the last block may be part empty.
        symmetric: No zero points.
        algorithm: How scales are chosen.
        by_column: MatMulNBits' layout instead of DequantizeLinear's.
        moments: For GPTQ, what flows in.

    Attributes:
        restored: With moments, once evaluated, the numbers that the parts stand for, shaped like the weight.
    """

    def __init__(
        self,
        weight: Weight,
        block_size: int,
        symmetric: bool,
        algorithm: Algorithm,
        *,
        by_column: bool,
        moments: Moments | None = None,
    ) -> None:
        self._weight = weight
        self._block = block_size
        self._symmetric = symmetric
        self._algorithm = algorithm
        self._by_column = by_column
        self._moments = moments
        self._blocks = -(-weight.summed // block_size)
        self.restored: Array | None = None

    def tensors(self) -> dict[str, ir.LazyTensor]:
        """`codes`, `scales` and, if asymmetric, `zero_points`, in the order the operators take them."""
        weight, blocks = self._weight, self._blocks
        parts = Parts(self._compute)
        if self._by_column:
            channels = weight.shape[weight.channel_axis]
            shapes = {
                "codes": (ir.DataType.UINT8, (channels, blocks, self._block // 2)),
                "scales": (weight.tensor.dtype, (channels, blocks)),
                "zero_points": (ir.DataType.UINT8, (channels, (blocks + 1) // 2)),
            }
        else:
            grid = tuple(blocks if i == weight.axis else size for i, size in enumerate(weight.shape))
            codes = ir.DataType.INT4 if self._symmetric else ir.DataType.UINT4
            shapes = {
                "codes": (codes, weight.shape),
                "scales": (weight.tensor.dtype, grid),
                "zero_points": (codes, grid),
            }
        if self._symmetric:
            del shapes["zero_points"]
        return {part: parts.tensor(part, part, dtype, shape) for part, (dtype, shape) in shapes.items()}

    def _compute(self) -> dict[str, ir.TensorProtocol]:
        weight = self._weight
        with reading(weight.tensor) as stored:
            array = _padded(stored, weight.axis, self._block)
            del stored
            try:
                made = self._quantize(array)
            except ValueError as fault:
                raise PassFailed(
                    f"int4: weight '{weight.name}' cannot be quantized: {fault}. Name its node under skip, "
                    "or mend the weight."
                ) from fault
            del array
        return self._as_columns(made) if self._by_column else self._as_rows(made)

    def _quantize(self, array: Array) -> Blocks:
        signed = self._symmetric and not self._by_column
        asymmetric = not self._symmetric
        if self._moments is not None:
            made, restored = quantize_calibrated(
                array, self._weight.axis, self._block, self._moments.padded(array.shape[self._weight.axis]),
                scale_dtype=array.dtype, asymmetric=asymmetric, signed=signed, by_column=self._by_column,
            )  # fmt: skip
            self.restored = restored.take(range(self._weight.summed), axis=self._weight.axis)
            return made
        return quantize_blocks(
            array, self._weight.axis, self._block,
            chooser(self._algorithm, array.dtype, asymmetric=asymmetric), scale_dtype=array.dtype,
            asymmetric=asymmetric, signed=signed, by_column=self._by_column,
        )  # fmt: skip

    def evaluated(self) -> dict[str, ir.TensorProtocol]:
        """The parts, made now, for algorithms whose moments cannot wait until the model is saved."""
        return self._compute()

    def _as_columns(self, made: Blocks) -> dict[str, ir.TensorProtocol]:
        shape = (self._weight.shape[self._weight.channel_axis], self._blocks)
        codes, scales = made.codes.reshape(*shape, self._block // 2), made.scales.reshape(shape)
        points = None if made.zero_points is None else made.zero_points.reshape(shape)
        zero = SYMMETRIC_ZERO * 0x11 if points is None else np.multiply(points, 0x11, dtype=np.uint8)
        tensors: dict[str, ir.TensorProtocol] = {
            "codes": ir.Tensor(codes),
            "scales": ir.Tensor(silenced(codes, scales, zero)),
        }
        if points is not None:
            points = np.pad(points, ((0, 0), (0, self._blocks % 2)))
            tensors["zero_points"] = ir.Tensor(points[:, 0::2] | (points[:, 1::2] << 4))
        return tensors

    def _as_rows(self, made: Blocks) -> dict[str, ir.TensorProtocol]:
        weight = self._weight
        grid = tuple(self._blocks if i == weight.axis else size for i, size in enumerate(weight.shape))
        kind = ir.DataType.INT4 if self._symmetric else ir.DataType.UINT4
        codes = made.codes
        if weight.summed % self._block:
            full = tuple(
                self._blocks * self._block if i == weight.axis else size for i, size in enumerate(weight.shape)
            )
            nibbles = numerics.unpack_4bit(codes, full, numerics.UINT4)
            codes = numerics.pack_4bit(nibbles.take(range(weight.summed), axis=weight.axis))
        tensors: dict[str, ir.TensorProtocol] = {
            "codes": ir.PackedTensor(codes, kind, shape=weight.shape),
            "scales": ir.Tensor(made.scales.reshape(grid)),
        }
        if made.zero_points is not None:
            packed = numerics.pack_4bit(made.zero_points)
            tensors["zero_points"] = ir.PackedTensor(packed, kind, shape=grid)
        return tensors


def _padded(array: Array, axis: int, block: int) -> Array:
    """The array with zeros appended along `axis` up to a whole number of blocks."""
    missing = -array.shape[axis] % block
    if not missing:
        return array
    widths = [(0, missing if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths)
