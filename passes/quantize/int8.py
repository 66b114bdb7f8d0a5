"""INT8: weights symmetric per output channel, activations eight bits, dynamic or calibrated.

Before: y = MatMul(x, w) + b
After, ONNX Runtime:  q, s, z = DynamicQuantizeLinear(x);  y = MatMulIntegerToFloat(q, w_int8, s, w_scale, z, , b)
       calibrated:    q = QuantizeLinear(x, s, z);         y = MatMulIntegerToFloat(q, w_int8, s, w_scale, z, , b)
After, TensorRT:      y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(w_int8, w_scale)) + b

Convolutions are always calibrated and written as Q/DQ, which ONNX Runtime turns into integer convolutions.

Leaves alone, each named with its reason: weights that are not stored constants or not of rank 2, layers in local
functions, weights that are all zero or not finite, activations that calibration found dead or not finite, what
`skip` names.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import pydantic

from passes import layers as weighted
from passes import names
from passes.base import Pass, PassContext, PassResult, Pattern
from passes.calibration import Method, MethodName
from passes.layers import Layer
from passes.qdq import Editor, drop_unused_constants
from passes.quantize import _integer_ops, _placing, _rounding
from passes.quantize._channel_weights import ChannelWeight, to_int8
from passes.quantize._learned import Learned, Lessons, learn
from passes.target import Target

MATRICES = ("MatMul", "Gemm")


class QuantizeInt8(Pass):
    """Quantize weighted layers to INT8."""

    activations: Literal["dynamic", "static"] = pydantic.Field(
        default="dynamic",
        description="dynamic: ranges are taken anew on every run (ONNX Runtime, matrix layers); static: ranges are "
        "learned from calibration data (needed for Conv and for TensorRT).",
    )
    ops: tuple[str, ...] | None = pydantic.Field(
        default=None, description="Operator types to quantize; unset: what the target runs faster in INT8."
    )
    skip: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Layers to leave in floating point: shell-style patterns of modules, nodes or operators.",
    )
    calibration: MethodName = pydantic.Field(
        default="minmax",
        description="How a static range is chosen: minmax, moving_average, percentile, entropy (KL) or mse.",
    )
    percentile: float = pydantic.Field(
        default=99.999, gt=50, le=100, description="Percent of values that `calibration: percentile` keeps."
    )
    smooth: float | None = pydantic.Field(
        default=None,
        ge=0,
        le=1,
        description="SmoothQuant's exponent for matrix layers: 0.8 moves most of the activations' outliers into "
        "the weights. Unset: no smoothing.",
    )
    rounding: Literal["nearest", "output"] = pydantic.Field(
        default="nearest",
        description="How weights are rounded: to the nearest step, or for the least output error on the "
        "calibration data (GPTQ, matrix layers).",
    )
    weight_clip: bool = pydantic.Field(
        default=False, description="Clip weights, per channel, where that gives the least squared error."
    )
    bias_correction: bool = pydantic.Field(
        default=False,
        description="Add the mean of what quantization takes from a matrix layer's output to its bias.",
    )
    rows: int = pydantic.Field(
        default=4096, ge=16, description="Activation rows kept per tensor for `rounding: output` and the bias."
    )

    def requires_calibration(self) -> bool:
        """Static ranges, smoothing, rounding by output and bias correction all need data."""
        return self.activations == "static" or self._learns()

    def _learns(self) -> bool:
        return self.smooth is not None or self.rounding == "output" or self.bias_correction

    def check(self, target: Target) -> str | None:
        """TensorRT has no dynamic INT8 activations."""
        if "int8" not in (*target.precisions, *target.emulated):
            return f"{target.title} does not run INT8; it runs {', '.join(target.precisions)}"
        if self.activations == "dynamic" and target.dialect == "tensorrt":
            return "TensorRT reads INT8 activations with calibrated scales only; use `activations: static`"
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Quantize every layer that can be, and name the others.

        Raises:
            PassFailed: When calibration is needed and its data is missing or unusable.
        """
        wanted = self.ops or context.target.quantize.ops.get("int8", ("MatMul", "Gemm", "Conv"))
        found, skips = weighted.find(model, wanted)
        candidates: list[Layer] = []
        for layer in found:
            reason = self._refusal(layer, model, context)
            if reason is None:
                candidates.append(layer)
            else:
                skips.append(weighted.skip(layer.node, reason))
        lessons = self._lessons(model, candidates, context)
        work = _Work(self, Editor(model), context.target.dialect == "onnxruntime", lessons)
        for done, layer in enumerate(candidates):
            context.progress("quantize layers", done, len(candidates))
            reason = work.quantize(layer)
            if reason is not None:
                skips.append(weighted.skip(layer.node, reason))
        drop_unused_constants(work.spent)
        return PassResult(
            patterns=(Pattern("layer", len(work.changed)),),
            skips=tuple(dict.fromkeys(skips)),
            changed=tuple(work.changed),
            figures={"weight bytes before": work.bytes_before, "weight bytes after": work.bytes_after},
            notes=lessons.notes,
        )

    def _refusal(self, layer: Layer, model: ir.Model, context: PassContext) -> str | None:
        if names.matches(layer.node, self.skip):
            return "listed under skip"
        static = self.activations == "static"
        if (static or self._learns()) and layer.graph is not model.graph:
            return "lies in a sub-graph, where calibration cannot observe it; use dynamic activations"
        if layer.node.op_type in MATRICES and context.target.dialect == "onnxruntime":
            reason = _integer_ops.refusal(layer)
            if reason is not None:
                return reason
        if layer.node.op_type not in MATRICES and not static:
            return f"{layer.node.op_type} needs calibrated ranges: use `activations: static`"
        if layer.weight.dtype == ir.DataType.DOUBLE:
            return "computes in DOUBLE; cast to FLOAT first"
        return None

    def _lessons(self, model: ir.Model, layers: list[Layer], context: PassContext) -> Lessons:
        if not layers or not self.requires_calibration():
            return Lessons({}, {}, ())
        return learn(
            model,
            layers,
            context,
            Method(self.calibration, self.percentile),
            symmetric=context.target.dialect == "tensorrt",
            alpha=self.smooth,
            rows=self.rows if self.rounding == "output" or self.bias_correction else 0,
        )


class _Work:
    """The layers quantized so far, in one run of the pass."""

    def __init__(self, options: QuantizeInt8, editor: Editor, integer: bool, lessons: Lessons) -> None:
        self.options = options
        self.editor = editor
        self.integer = integer
        self.lessons = lessons
        self.changed: list[str] = []
        self.spent: list[ir.Value] = []
        self.bytes_before = self.bytes_after = 0
        self._weights: dict[object, ChannelWeight] = {}

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
        self.spent += [value for value in layer.node.inputs[1:] if value is not None]
        self.changed.append(layer.name)
        self._write(layer, weight, source, bias)
        return None

    def _activation(self, layer: Layer) -> Learned | str | None:
        if not self.options.requires_calibration():
            return None
        name = self._observed(layer)
        if name in self.lessons.unusable:
            return f"its activation '{name}' {self.lessons.unusable[name]}"
        return self.lessons.of[name]

    def _observed(self, layer: Layer) -> str:
        """The name under which calibration saw the layer's activation: replaced layers keep their names."""
        return str(layer.activation.name)

    def _weight(self, layer: Layer, source: Learned | None) -> ChannelWeight:
        divisor = None if source is None else source.divisor
        key = (layer.weight.key, None if divisor is None else divisor.tobytes())
        if self.options.rounding == "output" and source is not None and source.rows is not None:
            key = (*key, layer.activation.name)  # type: ignore[assignment]
        if key not in self._weights:
            weight = to_int8(layer.weight, layer.channel_axis, self.options.weight_clip, divisor)
            if self.options.rounding == "output" and source is not None and source.rows is not None:
                weight = weight.with_elements(
                    _rounding.least_output_error(
                        _smoothed_weight(layer, divisor), _seen(source, self._static), weight.scale
                    )
                )
            self._weights[key] = weight
        return self._weights[key]

    @property
    def _static(self) -> bool:
        return self.options.activations == "static"

    def _bias(self, layer: Layer, weight: ChannelWeight, source: Learned | None) -> np.ndarray | None:
        if not self.options.bias_correction or source is None or source.rows is None:
            return None
        exact = np.asarray(layer.weight.numpy(), np.float32)
        stored = weight.quantized.numpy().astype(np.float32) * weight.scale
        lost = _rounding.bias_correction(exact, stored, source.rows, _seen(source, self._static))
        return lost if layer.bias is None else np.asarray(layer.bias.numpy(), np.float32) + lost

    def _write(self, layer: Layer, weight: ChannelWeight, source: Learned | None, bias: np.ndarray | None) -> None:
        divisor = None if source is None else source.divisor
        if self.integer and layer.node.op_type in MATRICES:
            static = source.quantizer if self._static and source is not None else None
            _integer_ops.replace_layer(self.editor, layer, weight, static, divisor, bias)
            return
        assert source is not None
        if bias is not None:
            _placing.replace_bias(self.editor, layer, bias)
        _placing.place(self.editor, layer, weight, source.quantizer, divisor)


def _smoothed_weight(layer: Layer, divisor: np.ndarray | None) -> np.ndarray:
    exact = np.asarray(layer.weight.numpy(), np.float32)
    return exact if divisor is None else exact * divisor[:, None]


def _seen(source: Learned, static: bool) -> np.ndarray:
    """The sampled rows as the quantized layer sees them: divided, and on the grid when that is fixed."""
    assert source.rows is not None
    rows = source.rows if source.divisor is None else source.rows / source.divisor
    return source.quantizer.apply(rows) if static else rows
