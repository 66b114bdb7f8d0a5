"""INT8 layer after layer: weight, bias and graph form of each, from what calibration learned.

Weights that several layers share are quantized once; smoothing or rounding by output makes them differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.layers import Layer
from passes.numerics import Format
from passes.qdq import Editor
from passes.quantize import _integer_ops, _placing, _rounding
from passes.quantize._channel_weights import ChannelWeight, to_int8
from passes.quantize._inputs import Inputs, inputs_of
from passes.quantize._learned import Learned, Lessons
from passes.quantize._results import has_pair
from passes.quantize._slots import Slot

Array = np.ndarray[Any, np.dtype[Any]]

MATRICES = ("MatMul", "Gemm")

SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

QDQ_PER_CHANNEL = 13
"""First opset whose DequantizeLinear takes an axis."""

QDQ_IN_16_BITS = 19
"""First opset whose QuantizeLinear and DequantizeLinear take scales in 16 bits."""


def least_opset(layers: Sequence[Layer], integer: bool, *, static: bool) -> int:
    """The standard opset that the quantized layers need (versions of the operators, onnx/docs/Operators.md).

    Args:
        layers: Layers to be quantized; without any, nothing is needed.
        integer: Whether matrix layers become ONNX Runtime's integer operators.
        static: Whether activations have calibrated scales: QuantizeLinear, else DynamicQuantizeLinear.
    """
    needed = [1]
    for layer in layers:
        if integer and layer.node.op_type in MATRICES:
            needed.append(10 if static else 11)
        else:  # a scale per channel, and since 19 in 16 bits
            needed.append(QDQ_IN_16_BITS if layer.weight.dtype in SIXTEEN_BITS else QDQ_PER_CHANNEL)
    return max(needed)


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the recipe and the target decide for every layer.

    Attributes:
        grid: Format of the weights.
        integer: Write matrix layers as ONNX Runtime's integer operators, else as Q/DQ.
        static: Activations have calibrated scales.
        learned: Layers need what calibration learned (static or not).
        clip: Search the weights' clipping.
        by_output: Round weights for the least output error.
        correct_bias: Add the mean loss to the bias.
        one_scale_in_fp16: Operator types that take their channels' factors behind them in FP16.
    """

    grid: Format
    integer: bool
    static: bool
    learned: bool
    clip: bool
    by_output: bool
    correct_bias: bool
    one_scale_in_fp16: Sequence[str] = ()


class LayerWork:
    """The layers quantized so far, in one run of the pass."""

    def __init__(self, choices: Choices, editor: Editor, lessons: Lessons) -> None:
        self.choices = choices
        self.editor = editor
        self.lessons = lessons
        self.changed: list[str] = []
        self.spent: list[ir.Value] = []
        self.computes_in: dict[ir.Node, ir.DataType] = {}
        self.bytes_before = self.bytes_after = 0
        self._weights: dict[object, ChannelWeight] = {}
        self._inputs: tuple[str, Inputs] | None = None

    def quantize(self, layer: Layer) -> str | None:
        """Quantize one layer, or say why not."""
        source = self._activation(layer)
        if isinstance(source, str):
            return source
        try:
            weight = self._weight(layer, source)
        except ValueError as error:
            return str(error)
        if weight.zero_channels == layer.channels:
            return f"weight '{layer.weight.name}' is all zeros"
        bias = self._bias(layer, weight, source)
        self.bytes_before += layer.weight.stored.nbytes
        self.bytes_after += weight.scale.nbytes + weight.quantized.nbytes
        read = (*layer.node.inputs[1:], *(layer.bias_node.inputs if layer.bias_node is not None else ()))
        self.spent += [value for value in read if value is not None and value is not layer.node.outputs[0]]
        self.changed.append(layer.name)
        self.computes_in[layer.node] = layer.weight.dtype
        self._write(layer, weight, source, bias)
        return None

    def quantize_slot(self, slot: Slot) -> str | None:
        """Put a pair on one more input, or say why not."""
        assert slot.beside is not None
        if slot.beside not in self.computes_in:
            return "the convolution beside it is not quantized"
        found = self.lessons.besides.get(slot.name)
        if found is None:
            return f"its input '{slot.name}' {self.lessons.unusable[slot.name]}"
        _placing.place_activation(self.editor, slot, found, self.computes_in[slot.beside])
        return None

    def quantize_result(self, convolution: ir.Node, value: ir.Value) -> str | None:
        """Put a pair behind a convolution's result unless one is there, or say why not."""
        if has_pair(value):
            return None
        found = self.lessons.besides.get(str(value.name))
        if found is None:
            return f"its result '{value.name}' {self.lessons.unusable[str(value.name)]}: it runs in floating point"
        _placing.place_result(self.editor, value, found, self.computes_in[convolution])
        return None

    def _activation(self, layer: Layer) -> Learned | str | None:
        """What was learned of the layer's activation; replaced layers keep their outputs' names."""
        if not self.choices.learned:
            return None
        name = str(layer.activation.name)
        if name in self.lessons.unusable:
            return f"its activation '{name}' {self.lessons.unusable[name]}"
        return self.lessons.of[name]

    def _weight(self, layer: Layer, source: Learned | None) -> ChannelWeight:
        divisor = None if source is None else source.divisor
        inputs = self._given(layer, source) if self.choices.by_output else None
        key = (
            layer.weight.key,
            None if divisor is None else divisor.tobytes(),
            layer.activation.name if inputs is not None else None,
        )
        if key not in self._weights:
            if inputs is None:
                made = to_int8(layer.weight, layer.channel_axis, self.choices.clip, divisor, self.choices.grid)
            else:
                made = _rounding.least_output_error(
                    _divided(layer, divisor), inputs, self.choices.grid, search_clip=self.choices.clip
                )
            self._weights[key] = made
        return self._weights[key]

    def _bias(self, layer: Layer, weight: ChannelWeight, source: Learned | None) -> Array | None:
        inputs = self._given(layer, source) if self.choices.correct_bias else None
        if inputs is None or source is None:
            return None
        stored = weight.quantized.numpy().astype(np.float32) * weight.scale
        lost = _rounding.bias_correction(_divided(layer, source.divisor), stored, inputs)
        return lost if layer.bias is None else np.asarray(layer.bias.numpy(), np.float32) + lost

    def _given(self, layer: Layer, source: Learned | None) -> Inputs | None:
        """What flows into the layer; kept while the layers that read the same activation are at work."""
        if source is None or source.rows is None:
            return None
        name = str(layer.activation.name)
        if self._inputs is None or self._inputs[0] != name:
            self._inputs = (name, inputs_of(source, source.rows, static=self.choices.static))
        return self._inputs[1]

    def _write(self, layer: Layer, weight: ChannelWeight, source: Learned | None, bias: Array | None) -> None:
        divisor = None if source is None else source.divisor
        if self.choices.integer and layer.node.op_type in MATRICES:
            static = source.quantizer if self.choices.static and source is not None else None
            _integer_ops.replace_layer(self.editor, layer, weight, static, divisor, bias)
            return
        assert source is not None
        if bias is not None:
            _placing.replace_bias(self.editor, layer, bias)
        apart = layer.node.op_type in self.choices.one_scale_in_fp16 and layer.weight.dtype == ir.DataType.FLOAT16
        _placing.place(self.editor, layer, weight, source.quantizer, divisor, factors_behind=apart)


def _divided(layer: Layer, divisor: Array | None) -> Array:
    """(in, out) float32, the weight that meets the divided activation."""
    exact = np.asarray(layer.weight.numpy(), np.float32)
    return exact if divisor is None else exact * divisor[:, None]
