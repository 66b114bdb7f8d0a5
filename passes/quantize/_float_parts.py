"""The tensors and nodes that an FP8 or FP4 weight is stored as, evaluated when they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes import block_formats, numerics
from passes.base import PassFailed
from passes.quantize import _float_blocks
from passes.quantize._gptq import corrected, round_with_feedback
from passes.quantize._lazy import Parts, reading
from passes.quantize._moments import Moments
from passes.quantize._tiles import to_float32
from passes.quantize._weights import Weight

Array = npt.NDArray[Any]
FloatFormat = Literal["fp8", "fp8_tensor", "fp8_block", "mxfp8", "mxfp8_trt", "nvfp4", "mxfp4"]
"""`fp8` has a scale per output channel, `fp8_tensor` one in all. `mxfp8_trt` is MXFP8 for TensorRT's own operator,
`mxfp8` the same numbers for standard ONNX."""

WHOLE = ("fp8", "fp8_tensor")
"""Formats without blocks."""

TRT_DOMAIN = "trt"


class FloatParts:
    """Elements, scales and dequantizing nodes of one weight.

    Args:
        weight: The weight; its summed axis is a multiple of the block.
        layout: The stored format.
        block_size: Elements per block, for `fp8_block`; the other formats have their own.
        search: Choose NVFP4 block scales by least squared error.
        moments: Round for the least output error on inputs with these moments.

    Attributes:
        restored: With moments, once evaluated, the numbers that the parts stand for, shaped like the weight.
    """

    def __init__(
        self,
        weight: Weight,
        layout: FloatFormat,
        *,
        block_size: int = 32,
        search: bool = False,
        moments: Moments | None = None,
    ) -> None:
        self._weight = weight
        self._format = layout
        self._search = search
        self._moments = moments
        self.restored: Array | None = None
        self._global_scale: np.float32 | None = None
        own = {"nvfp4": block_formats.NVFP4_BLOCK, "fp8_block": block_size}
        self._block = own.get(layout, block_formats.MX_BLOCK)

    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """The lazy tensors by part: `codes`, `scales`, and `global_scale` or `zero_point` where there is one."""
        weight, parts = self._weight, Parts(self._compute)
        four = self._format in ("nvfp4", "mxfp4")
        codes = ir.DataType.FLOAT4E2M1 if four else ir.DataType.FLOAT8E4M3FN
        grid = tuple(size // self._block if axis == weight.axis else size for axis, size in enumerate(weight.shape))
        kinds: dict[str, tuple[ir.DataType, tuple[int, ...]]] = {"codes": (codes, weight.shape)}
        if self._format == "fp8":
            channels = weight.shape[weight.channel_axis]
            kinds["scales"] = (weight.tensor.dtype, (channels,))
        elif self._format == "fp8_tensor":
            kinds["scales"] = (weight.tensor.dtype, ())
        elif self._format == "nvfp4":
            kinds["scales"] = (ir.DataType.FLOAT8E4M3FN, grid)
        elif self._format == "mxfp8_trt":
            kinds["scales"] = (ir.DataType.UINT8, grid)
        else:
            kinds["scales"] = (weight.tensor.dtype, grid)
        held: dict[str, ir.TensorProtocol] = {
            part: parts.tensor(part, part, dtype, shape) for part, (dtype, shape) in kinds.items()
        }
        if self._format in WHOLE:
            held["zero_point"] = self._zeros()
        if self._format == "nvfp4":
            # Apart from the others: savers write a scalar long after the weight, which is not kept that long.
            held["global_scale"] = ir.LazyTensor(
                self._global, dtype=ir.DataType.FLOAT, shape=ir.Shape(()), name="global_scale"
            )
        return held

    def evaluated(self) -> dict[str, ir.TensorProtocol]:
        """The parts, made now, for moments that cannot wait until the model is saved."""
        made = self._compute()
        if self._format == "nvfp4":
            return made | {"global_scale": self._global()}
        return made | {"zero_point": self._zeros()} if self._format in WHOLE else made

    def _zeros(self) -> ir.TensorProtocol:
        """One explicit FP8 zero per scale."""
        shape = () if self._format == "fp8_tensor" else (self._weight.shape[self._weight.channel_axis],)
        return ir.Tensor(np.zeros(shape, numerics.FP8_E4M3.dtype))

    def nodes(self, held: Mapping[str, ir.Value]) -> list[ir.Node]:
        """The nodes that turn the parts back into a weight; the last one's output is the weight."""
        weight = self._weight
        blocks: dict[str, int] = {"axis": weight.axis, "block_size": self._block}
        if self._format in WHOLE:
            inputs = [held["codes"], held["scales"], held["zero_point"]]
            per_channel = {} if self._format == "fp8_tensor" else {"axis": weight.channel_axis}
            return [ir.node("DequantizeLinear", inputs, per_channel)]
        if self._format == "mxfp8_trt":
            blocks["output_dtype"] = int(weight.tensor.dtype)
            inputs = [held["codes"], held["scales"]]
            return [ir.node("TRT_MXFP8DequantizeLinear", inputs, blocks, domain=TRT_DOMAIN)]
        if self._format != "nvfp4":
            return [ir.node("DequantizeLinear", [held["codes"], held["scales"]], blocks)]
        nodes = [ir.node("DequantizeLinear", [held["scales"], held["global_scale"]])]
        if weight.tensor.dtype != ir.DataType.FLOAT:
            # The global scale of an FP16 weight is about 1e-5, where float16 keeps few digits.
            nodes.append(ir.node("Cast", nodes[-1].outputs, {"to": int(weight.tensor.dtype)}))
        nodes.append(ir.node("DequantizeLinear", [held["codes"], nodes[-1].outputs[0]], blocks))
        return nodes

    def _global(self) -> ir.TensorProtocol:
        """NVFP4's scale of the whole tensor; a scalar, so it is kept once known."""
        if self._global_scale is None:
            with reading(self._weight.tensor) as stored:
                self._global_scale = block_formats.nvfp4_global_scale(_float_blocks.amax_of(stored))
                del stored  # or the file stays mapped
        return ir.Tensor(np.array(self._global_scale, np.float32))

    def _compute(self) -> dict[str, ir.TensorProtocol]:
        weight = self._weight
        with reading(weight.tensor) as stored:
            try:
                made = self._quantize(stored)
            except ValueError as fault:
                raise PassFailed(
                    f"{self._format}: weight '{weight.name}' cannot be quantized: {fault}. Name its node under "
                    "skip, or mend the weight."
                ) from fault
            del stored  # or the file stays mapped
        return made

    def _quantize(self, stored: Array) -> dict[str, ir.TensorProtocol]:
        weight = self._weight
        kind = stored.dtype
        if self._moments is not None and self._moments.lost is not None:
            first = weight.axis == 0
            better = corrected(to_float32(stored if first else stored.T), self._moments)
            stored = (better if first else better.T).astype(kind)
        if self._format in WHOLE:
            one = self._format == "fp8_tensor"
            made = _float_blocks.quantize_fp8_channels(stored, weight.channel_axis, kind, one_scale=one)
            if self._moments is not None:
                by_channel = made.scales.astype(np.float32)[None, :]
                codes = self._rounded(stored, by_channel, weight.summed, numerics.FP8_E4M3)
                made = dataclasses.replace(made, codes=codes)
            return {"codes": ir.Tensor(made.codes), "scales": ir.Tensor(made.scales[0] if one else made.scales)}
        four = self._format in ("nvfp4", "mxfp4")
        grid = numerics.FP4_E2M1 if four else numerics.FP8_E4M3
        global_scale = np.float32(1)
        if self._format == "nvfp4":
            if self._global_scale is None:
                self._global_scale = block_formats.nvfp4_global_scale(_float_blocks.amax_of(stored))
            global_scale = self._global_scale
            kind, choose = numerics.FP8_E4M3.dtype, _float_blocks.nvfp4(global_scale, search=self._search)
        elif self._format == "fp8_block":
            choose = _float_blocks.block_range(grid, kind)
        else:
            kind = numerics.E8M0 if self._format == "mxfp8_trt" else kind
            choose = _float_blocks.block_power_of_two(grid, kind)
        made = _float_blocks.quantize_float_blocks(stored, weight.axis, self._block, grid, choose, kind)
        shape = tuple(
            size // self._block if axis == weight.axis else size for axis, size in enumerate(weight.shape)
        )
        scales = made.scales.reshape(shape)
        elements = made.codes
        if self._moments is not None:
            by_block = scales.astype(np.float32) * global_scale
            elements = self._rounded(stored, by_block if weight.axis == 0 else by_block.T, self._block, grid)
            elements = numerics.pack_4bit(elements) if four else elements
        stored_codes: ir.TensorProtocol = ir.Tensor(elements)
        if four:
            stored_codes = ir.PackedTensor(elements, ir.DataType.FLOAT4E2M1, shape=weight.shape)
        parts: dict[str, ir.TensorProtocol] = {
            "codes": stored_codes,
            "scales": ir.Tensor(scales.view(np.uint8) if self._format == "mxfp8_trt" else scales),
        }
        return parts

    def _rounded(self, stored: Array, steps: Array, block: int, grid: numerics.Format) -> Array:
        """Elements shaped like the weight, rounded with feedback; `steps` is `(K / block, N)` float32."""
        assert self._moments is not None
        first = self._weight.axis == 0
        values = to_float32(stored if first else stored.T)

        def nearest(ratio: Array, index: int) -> Array:
            if grid.bits == 4:
                return block_formats.round_e2m1(ratio)
            return np.clip(ratio, grid.lowest, grid.highest).astype(grid.dtype).astype(np.float32)

        rounded = round_with_feedback(values, self._moments.own, np.ascontiguousarray(steps), block, nearest)
        restored = rounded * np.repeat(steps, block, axis=0)
        self.restored = restored if first else restored.T
        return np.ascontiguousarray(rounded if first else rounded.T).astype(grid.dtype)
