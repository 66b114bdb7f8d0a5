"""Weights on the grids that ModelOpt learned: scales now, elements when they are written.

A layer's weight in the graph may be the module's with a factor per output channel (a batch normalisation folded
into it). The quantizer is then folded the same way: `g * (s * q) = (g * s) * q` keeps ModelOpt's very elements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import block_formats, numerics
from passes.layers import Layer
from passes.lessons import LayerLesson
from passes.qdq import Editor, stored_weight
from passes.quantize import _float_blocks
from passes.quantize._channel_weights import ChannelWeight

Array = np.ndarray[Any, np.dtype[Any]]

SAME = 2.0**-9
"""Relative difference of two weights that are the same: a cast to FP16 keeps 11 bits."""


FEW_CHANNELS = 4
"""Least number of channels that a layer is recognised by."""


@dataclasses.dataclass(frozen=True)
class LearnedWeight:
    """One layer's weight as it will be stored.

    Attributes:
        layer: The layer in the graph.
        lesson: What ModelOpt learned of it.
        ratio: (out,) the graph's weight over the module's, or None where they are the same.
        integers: What INT8 is stored in.
    """

    layer: Layer
    lesson: LayerLesson
    ratio: Array | None
    integers: numerics.Format = numerics.INT8

    @property
    def divisor(self) -> Array | None:
        """(in,) factors that the input is divided by and the weight multiplied with, or None."""
        factors = self.lesson.input_factors
        return None if factors is None else (1 / factors).astype(np.float32)

    def channel_weight(self) -> ChannelWeight:
        """INT8 with one scale per output channel."""
        scale = self._channel_steps(self.integers, np.dtype(np.float32))
        lazy = ir.LazyTensor(
            lambda: ir.tensor(self._elements(self.integers, self._along_channels(scale))),
            dtype=ir.DataType.INT8, shape=ir.Shape(self.layer.weight.shape),
        )  # fmt: skip
        return ChannelWeight(scale, lazy, self.layer.channel_axis, 0)

    def place(self, editor: Editor) -> ir.Value:
        """Store the weight, dequantize it in front of the layer, and give the dequantized value."""
        if self.lesson.weight == "nvfp4":
            return self._place_nvfp4(editor)
        if self.lesson.block:
            return self._place_blocks(editor)
        layer = self.layer
        is_fp8 = self.lesson.weight == "fp8"
        grid = numerics.FP8_E4M3 if is_fp8 else self.integers
        scale = self._channel_steps(grid, layer.weight.dtype.numpy())
        kind = ir.DataType.FLOAT8E4M3FN if is_fp8 else ir.DataType.INT8
        steps = self._along_channels(scale.astype(np.float32))
        lazy = ir.LazyTensor(
            lambda: ir.tensor(self._elements(grid, steps)), dtype=kind, shape=ir.Shape(layer.weight.shape)
        )
        stem = layer.weight.name or str(layer.node.name)
        held = editor.tensor(f"{stem}_{self.lesson.weight}", lazy)
        # Explicit zeros: ONNX Runtime moves a DequantizeLinear without them to where its result is wrong.
        zero = editor.constant(f"{stem}_zero_point", np.zeros(scale.shape, grid.dtype))
        step = editor.constant(f"{stem}_scale", scale)
        return stored_weight(editor, stem, held, step, zero, layer.channel_axis, before=layer.node)

    def _channel_steps(self, grid: numerics.Format, kind: np.dtype[Any]) -> Array:
        """(out,) one step per output channel."""
        assert self.lesson.weight_amax is not None
        amax = np.broadcast_to(self.lesson.weight_amax, (self.layer.channels,)).astype(np.float32)
        if self.ratio is not None:
            amax = amax * self.ratio
        return numerics.symmetric_scale(amax, grid, kind)

    def _along_channels(self, scale: Array) -> Array:
        shape = [1] * len(self.layer.weight.shape)
        shape[self.layer.channel_axis] = -1
        return scale.reshape(shape)

    def _values(self) -> Array:
        """The weight as the layer multiplies it, with the input's factors taken out, float32."""
        values = np.asarray(self.layer.weight.numpy(), np.float32)
        return values if self.divisor is None else values * self.divisor[:, None]

    def _elements(self, grid: numerics.Format, steps: Array) -> Array:
        return numerics.quantize(self._values(), steps, grid)

    def _place_blocks(self, editor: Editor) -> ir.Value:
        """INT4: scales (blocks, out), `block` elements along K each; the last block may be part empty."""
        layer, block = self.layer, self.lesson.block
        assert self.lesson.weight_amax is not None
        amax = np.ascontiguousarray(self.lesson.weight_amax.T)
        amax = amax if self.ratio is None else amax * self.ratio
        scale = numerics.symmetric_scale(amax, numerics.INT4, layer.weight.dtype.numpy())

        def elements() -> ir.TensorProtocol:
            steps = np.repeat(scale.astype(np.float32), block, axis=0)[: layer.weight.shape[0]]
            packed = numerics.pack_4bit(self._elements(numerics.INT4, steps))
            return ir.PackedTensor(packed, ir.DataType.INT4, shape=layer.weight.shape)

        stem = layer.weight.name or str(layer.node.name)
        lazy = ir.LazyTensor(elements, dtype=ir.DataType.INT4, shape=ir.Shape(layer.weight.shape))
        held, step = editor.tensor(f"{stem}_int4", lazy), editor.constant(f"{stem}_scale", scale)
        return self._dequantized(editor, stem, [held, step], {"axis": 0, "block_size": block})

    def _place_nvfp4(self, editor: Editor) -> ir.Value:
        """E2M1 in blocks of 16 along K, E4M3 scales, one float32 scale from the learned range."""
        layer = self.layer
        assert self.lesson.weight_amax is not None
        size = block_formats.NVFP4_BLOCK
        rows, columns = layer.weight.shape
        whole = block_formats.nvfp4_global_scale(float(self.lesson.weight_amax))
        made: dict[str, Any] = {}

        def blocks() -> Any:
            return _float_blocks.quantize_float_blocks(
                self._values(), 0, size, numerics.FP4_E2M1, _float_blocks.nvfp4(whole, search=False),
                numerics.FP8_E4M3.dtype,
            )  # fmt: skip

        def codes() -> ir.TensorProtocol:
            made["blocks"] = blocks()
            return ir.PackedTensor(made["blocks"].codes, ir.DataType.FLOAT4E2M1, shape=layer.weight.shape)

        def scales() -> ir.TensorProtocol:
            found = made.pop("blocks", None) or blocks()  # savers write them right after the elements
            return ir.tensor(found.scales.reshape(rows // size, columns))

        stem = layer.weight.name or str(layer.node.name)
        held = editor.tensor(
            f"{stem}_fp4",
            ir.LazyTensor(codes, dtype=ir.DataType.FLOAT4E2M1, shape=ir.Shape(layer.weight.shape)),
        )
        inner = editor.tensor(
            f"{stem}_scales",
            ir.LazyTensor(scales, dtype=ir.DataType.FLOAT8E4M3FN, shape=ir.Shape((rows // size, columns))),
        )
        outer = editor.constant(f"{stem}_global_scale", np.asarray(whole, np.float32))
        steps = editor.node("DequantizeLinear", [inner, outer], [f"{stem}_steps"], like=layer.node)
        steps.outputs[0].type, steps.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), inner.shape
        layer.graph.insert_before(layer.node, steps)
        step = steps.outputs[0]
        if layer.weight.dtype != ir.DataType.FLOAT:
            cast = editor.node("Cast", [step], [f"{stem}_steps_cast"], attributes={"to": int(layer.weight.dtype)})
            layer.graph.insert_before(layer.node, cast)
            step = cast.outputs[0]
        return self._dequantized(editor, stem, [held, step], {"axis": 0, "block_size": size})

    def _dequantized(
        self, editor: Editor, stem: str, inputs: list[ir.Value], attributes: dict[str, Any]
    ) -> ir.Value:
        layer = self.layer
        node = editor.node(
            "DequantizeLinear", inputs, [f"{stem}_dequantized"], like=layer.node, attributes=attributes
        )
        node.outputs[0].type = ir.TensorType(layer.weight.dtype)
        node.outputs[0].shape = ir.Shape(layer.weight.shape)
        layer.graph.insert_before(layer.node, node)
        return node.outputs[0]


def matched(layer: Layer, lesson: LayerLesson) -> LearnedWeight | str:
    """Bring a layer and a lesson together, or say why they do not belong together."""
    channels = len(lesson.plain_amax)
    if channels != layer.channels:
        return f"has {layer.channels} output channels, module '{lesson.module}' has {channels}"
    if lesson.input_factors is not None and len(lesson.input_factors) != layer.weight.shape[0]:
        return f"sums over {layer.weight.shape[0]} inputs, the module over {len(lesson.input_factors)}"
    by_amax, by_norm = _ratios(layer, lesson)
    if not np.allclose(by_amax, by_norm, rtol=4 * SAME, atol=0):
        return "its weight is not the module's: another pass changed it. Place ModelOpt's quantizers earlier"
    ratio = None if np.allclose(by_amax, 1, rtol=SAME, atol=0) else by_amax
    if ratio is not None and lesson.weight == "nvfp4":
        return "its weight has a batch normalisation folded in, which FP4's scales cannot take"
    return LearnedWeight(layer, lesson, ratio)


def recognised(layer: Layer, lessons: Sequence[LayerLesson]) -> LayerLesson | None:
    """The one lesson whose module's weight this is but for a factor per output channel, or None.

    A folded batch normalisation leaves the node with the normalisation's name, and leaves each channel's largest
    magnitude over its norm as it was: with a few channels that tells layers apart.
    """
    found = [
        lesson
        for lesson in lessons
        if len(lesson.plain_amax) == layer.channels
        and layer.channels >= FEW_CHANNELS
        and np.allclose(*_ratios(layer, lesson), rtol=4 * SAME, atol=0)
    ]
    return found[0] if len(found) == 1 else None


def _ratios(layer: Layer, lesson: LayerLesson) -> tuple[Array, Array]:
    """(out,) each: the graph's weight over the module's, by largest magnitude and by norm."""
    channels = layer.channels
    rows = np.moveaxis(np.asarray(layer.weight.numpy(), np.float32), layer.channel_axis, 0).reshape(channels, -1)
    known = lesson.plain_amax > 0
    pairs = (
        (np.abs(rows).max(axis=1), lesson.plain_amax),
        (np.linalg.norm(rows, axis=1), lesson.plain_norm),
    )
    by_amax, by_norm = (
        np.divide(now, before, out=np.ones(channels, np.float32), where=known) for now, before in pairs
    )
    return by_amax, by_norm
