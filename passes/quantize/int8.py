"""INT8: weights symmetric per output channel, activations eight bits, dynamic or calibrated.

Before: y = MatMul(x, w) + b
After, ONNX Runtime:  q, s, z = DynamicQuantizeLinear(x);  y = MatMulIntegerToFloat(q, w_int8, s, w_scale, z, , b)
       calibrated:    q = QuantizeLinear(x, s, z);         y = MatMulIntegerToFloat(q, w_int8, s, w_scale, z, , b)
After, TensorRT:      y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(w_int8, w_scale)) + b

Convolutions are always calibrated and written as Q/DQ, which ONNX Runtime turns into integer convolutions. The
target's rules say where else such pairs stand: on what is added to a convolution's result (`residual_adds`), behind
a convolution (`convolution_results`), in front of Concat and other operators that move values (`repeat_before`),
and whether the first and last layer stay as they are (`keep_first`, `keep_last`).

Leaves alone, each named with its reason: weights that are not stored constants or not of rank 2, layers in local
functions, weights that are all zero or not finite, activations that calibration found dead or not finite, what
`skip` names. A model of an older opset than these operators is converted first.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir
import pydantic

from passes import layers as weighted
from passes import names, numerics
from passes.base import Pass, PassContext, PassResult, Pattern, Skip
from passes.calibration import Method, MethodName
from passes.layers import Layer
from passes.opset import lift
from passes.qdq import Editor, drop_unused_constants
from passes.quantize import _integer_ops
from passes.quantize._channel_weights import SEVEN_BITS
from passes.quantize._edges import Choice, at_edges
from passes.quantize._int8_layers import MATRICES, Choices, LayerWork, least_opset
from passes.quantize._learned import Lessons, learn
from passes.quantize._results import repeat_before, result_of
from passes.quantize._slots import Slot, skip_connections
from passes.target import Target


class QuantizeInt8(Pass):
    """Quantize weighted layers to INT8."""

    version: ClassVar[int] = 6

    activations: Literal["dynamic", "static"] = pydantic.Field(
        default="dynamic",
        description="dynamic: ranges are taken anew on every run (ONNX Runtime, matrix layers); static: ranges are "
        "learned from calibration data (needed for Conv and for TensorRT).",
    )
    ops: tuple[Literal["MatMul", "Gemm", "Conv", "ConvTranspose"], ...] | None = pydantic.Field(
        default=None, description="Operator types to quantize; unset: what the target runs faster in INT8."
    )
    skip: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Layers to leave in floating point: shell-style patterns of modules, nodes or operators.",
    )
    first_layer: Choice = pydantic.Field(
        default="auto",
        description="The layer that reads the model's input (an image's): quantize it, keep it in floating point, "
        "or what the target's rules say.",
    )
    last_layer: Choice = pydantic.Field(default="auto", description="The same for a layer with no other behind it.")
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
    weight_bits: Literal["auto", 7, 8] = pydantic.Field(
        default="auto",
        description="7 keeps weights within ±64: on x86 processors without VNNI, whose fast kernel cannot sum "
        "products of 8 bits, about a tenth faster than 8. auto is 7 where the target is one, else 8.",
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
        """Dynamic activations are integer operators, which only some engines run."""
        if "int8" not in (*target.precisions, *target.emulated):
            return f"{target.title} does not run INT8; it runs {', '.join(target.precisions)}"
        if self.activations == "dynamic" and not target.quantize.integer_ops:
            return f"{target.title} reads INT8 activations with calibrated scales only; use `activations: static`"
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Quantize every layer that can be, and name the others.

        Raises:
            PassFailed: When calibration is needed and its data is missing or unusable, or the model's opset is too
                old and cannot be converted.
        """
        candidates, skips = self._candidates(model, context)
        least = least_opset(candidates, context.target.quantize.integer_ops, static=self.activations == "static")
        if lift(model, least, "INT8"):
            candidates, skips = self._candidates(model, context)
        slots = self._slots(model, candidates, context.target)
        results = self._results(model, candidates, context.target)
        besides = [*(slot.name for slot in slots), *(str(value.name) for value in results.values())]
        lessons = self._lessons(model, candidates, besides, context)
        choices = Choices(
            grid=self._grid(context.target),
            integer=context.target.quantize.integer_ops,
            static=self.activations == "static",
            learned=self.requires_calibration(),
            clip=self.weight_clip,
            by_output=self.rounding == "output",
            correct_bias=self.bias_correction,
            one_scale_in_fp16=context.target.quantize.one_scale_in_fp16.get("int8", ()),
        )
        work = LayerWork(choices, Editor(model), lessons)
        for done, layer in enumerate(candidates):
            context.progress("quantize layers", done, len(candidates))
            reason = work.quantize(layer)
            if reason is not None:
                skips.append(weighted.skip(layer.node, reason))
        refused = {slot: work.quantize_slot(slot) for slot in slots}
        skips += [slot.skip(reason) for slot, reason in refused.items() if reason is not None]
        added = sum(reason is None for reason in refused.values())
        moved = 0
        if work.computes_in and self.activations == "static":
            rule = context.target.quantize.repeat_before.get("int8", ())
            whole = all(_gains(layer, context.target) for layer in candidates)
            own = {value for node, value in results.items() if node in work.computes_in}
            moved = repeat_before(work.editor, model.graph, rule if whole else (), own)
        for node, value in results.items():
            reason = work.quantize_result(node, value) if node in work.computes_in else None
            if reason is not None:
                skips.append(weighted.skip(node, reason))
        drop_unused_constants(work.spent)
        return PassResult(
            patterns=(
                Pattern("layer", len(work.changed)),
                Pattern("skip connection", added),
                Pattern("moved in 8 bits", moved),
            ),
            skips=tuple(dict.fromkeys(skips)),
            changed=tuple(work.changed),
            figures={"weight bytes before": work.bytes_before, "weight bytes after": work.bytes_after},
            notes=lessons.notes,
        )

    def _candidates(self, model: ir.Model, context: PassContext) -> tuple[list[Layer], list[Skip]]:
        """The layers to quantize, and the others with their reasons; nothing is changed."""
        wanted: tuple[str, ...] = self.ops or context.target.quantize.ops.get("int8", ("MatMul", "Gemm", "Conv"))
        found, skips = weighted.find(model, wanted)
        at_edge = at_edges(
            model, [layer.node for layer in found], context.target, "int8",
            first=self.first_layer, last=self.last_layer,
        )  # fmt: skip
        candidates: list[Layer] = []
        for layer in found:
            reason = self._refusal(layer, model, context) or at_edge.get(layer.node)
            if reason is None:
                candidates.append(layer)
            else:
                skips.append(weighted.skip(layer.node, reason))
        return candidates, skips

    def _grid(self, target: Target) -> numerics.Format:
        seven = self.weight_bits == 7 or (self.weight_bits == "auto" and target.sums_in_16_bits)
        return SEVEN_BITS if seven else numerics.INT8

    def _refusal(self, layer: Layer, model: ir.Model, context: PassContext) -> str | None:
        if names.matches(layer.node, self.skip):
            return "listed under skip"
        static = self.activations == "static"
        if (static or self._learns()) and layer.graph is not model.graph:
            return "lies in a sub-graph, where calibration cannot observe it; use dynamic activations"
        if layer.node.op_type in MATRICES and context.target.quantize.integer_ops:
            reason = _integer_ops.refusal(layer)
            if reason is not None:
                return reason
        if layer.node.op_type not in MATRICES and not static:
            return f"{layer.node.op_type} needs calibrated ranges: use `activations: static`"
        if layer.weight.dtype == ir.DataType.DOUBLE:
            return "computes in DOUBLE; cast to FLOAT first"
        return None

    def _slots(self, model: ir.Model, layers: list[Layer], target: Target) -> list[Slot]:
        """What is quantized besides the inputs of layers."""
        if self.activations == "dynamic" or "int8" not in target.quantize.residual_adds:
            return []
        nodes = [layer.node for layer in layers if layer.graph is model.graph and _gains(layer, target)]
        return skip_connections(nodes, self.skip)

    def _results(self, model: ir.Model, layers: list[Layer], target: Target) -> dict[ir.Node, ir.Value]:
        """The convolutions' results that are quantized too."""
        if self.activations == "dynamic" or "int8" not in target.quantize.convolution_results:
            return {}
        nodes = [layer.node for layer in layers if layer.graph is model.graph and _gains(layer, target)]
        return {node: result_of(node) for node in nodes if node.op_type == "Conv"}

    def _lessons(self, model: ir.Model, layers: list[Layer], besides: list[str], context: PassContext) -> Lessons:
        if not layers or not self.requires_calibration():
            return Lessons({}, {}, ())
        return learn(
            model,
            layers,
            context,
            Method(self.calibration, self.percentile),
            symmetric="int8" not in context.target.quantize.asymmetric,
            alpha=self.smooth,
            rows=self.rows if self.rounding == "output" or self.bias_correction else 0,
            besides=besides,
        )


def _gains(layer: Layer, target: Target) -> bool:
    """Whether pairs around the layer's neighbours gain: ONNX Runtime's integer operators take FP32 scales alone."""
    return target.dialect != "onnxruntime" or layer.weight.dtype == ir.DataType.FLOAT
