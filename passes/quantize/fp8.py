"""Weights, and activations too, of matrix products and convolutions in 8-bit floating point (E4M3).

Before: `y = MatMul(x, w)`
After: `y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(codes, scales))`, codes FLOAT8E4M3FN
shaped like w, one scale per output channel, s one scale per tensor from calibration
After (`activations: none`): the same without the pair on x
After (`attention: true`): both inputs of query times key and of weights times values through such pairs too
After (`block_size: 32`): scales along K, one per block; with `scales: power_of_two` this is MXFP8

Where the target says so (`residual_adds`), what is added to a quantized convolution goes through a pair too.
Every quantizer has an explicit zero point of 0: ONNX Runtime moves DequantizeLinear without one to where its
result is wrong. Leaves alone, by name: what `skip` names, computed or left-hand weights, 1-D weights, weights
that something else reads in floating point, K not a multiple of the block, inputs without a range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
import pydantic

from passes import names, numerics
from passes.base import Pass, PassContext, PassResult, Pattern, Skip
from passes.calibration import Method, MethodName, collect
from passes.opset import lift
from passes.qdq import Editor, fake_quantize
from passes.quantize._channel_factors import smooth
from passes.quantize._edges import Choice, at_edges
from passes.quantize._float_parts import FloatFormat, FloatParts
from passes.quantize._graph import insert_weight_nodes
from passes.quantize._moments import Array, Moments, calibrated
from passes.quantize._results import repeat_before
from passes.quantize._slots import Slot, attention_inputs, patterns, skip_connections, slot
from passes.quantize._weights import Use, Weight, find_weights
from passes.target import Target

OPS = ("MatMul", "Gemm", "Conv")

Quantized = tuple[Weight, Mapping[str, ir.TensorProtocol], FloatParts]


class QuantizeFp8(Pass):
    """Store weights as E4M3 numbers and, with calibration data, quantize what meets them too.

    Weights stay lazy: each is read, quantized and written when the model is saved, one at a time.
    """

    version: ClassVar[int] = 5

    ops: tuple[Literal["MatMul", "Gemm", "Conv"], ...] | None = pydantic.Field(
        None, description="Operator types to quantize; unset: what the target runs faster in FP8."
    )
    skip: tuple[str, ...] = pydantic.Field(
        (), description="Nodes to leave alone: shell patterns of node names, modules or operator types."
    )
    activations: Literal["static", "none"] = pydantic.Field(
        "static", description="`static`: one scale per input tensor, from calibration; `none`: weights only."
    )
    attention: bool = pydantic.Field(
        False,
        description="Quantize the inputs of both products inside attention too, where attention is written as "
        "MatMul, Softmax and MatMul: before `fuse.attention`.",
    )
    first_layer: Choice = pydantic.Field(
        "auto",
        description="The layer that reads the model's input (an image's): quantize it, keep it in floating point, "
        "or what the target's rules say.",
    )
    last_layer: Choice = pydantic.Field("auto", description="The same for a layer with no other behind it.")
    calibration: MethodName = pydantic.Field(
        "minmax", description="How an input's range is chosen from the calibration data."
    )
    smooth: float | None = pydantic.Field(
        None,
        ge=0,
        le=1,
        description="SmoothQuant's exponent: moves outlier channels of the inputs of MatMul and Gemm into weights "
        "first. E4M3's steps grow with the magnitude, so that it seldom gains. Unset: no smoothing.",
    )
    rounding: Literal["nearest", "output"] = pydantic.Field(
        "nearest",
        description="How weights are rounded: to the nearest step, or for the least output error on the "
        "calibration data (GPTQ).",
    )
    in_turn: bool = pydantic.Field(
        True,
        description="With rounding by output: calibrate each layer on what the layers before it give once they are "
        "quantized, and make good for what they lost. Runs the data once per layer input; not done above 1 GiB.",
    )
    block_size: Literal[0, 32, 64, 128] = pydantic.Field(
        0, description="Elements along K that share a scale (weights only); 0 is one scale per output channel."
    )
    weight_scales: Literal["auto", "channel", "tensor"] = pydantic.Field(
        "auto",
        description="One scale per output channel of a weight, or one per weight (without blocks). auto: channel, "
        "but tensor where the target's rules say so (products in FP16 in TensorRT).",
    )
    scales: Literal["float", "power_of_two"] = pydantic.Field(
        "float", description="`power_of_two` with block_size 32 is the MXFP8 format."
    )

    @pydantic.model_validator(mode="after")
    def _options_agree(self) -> QuantizeFp8:
        if self.block_size and self.activations == "static":
            raise ValueError("block_size is for weights alone: set activations: none, or block_size: 0")
        if self.block_size and self.weight_scales != "auto":
            raise ValueError(
                f"weight_scales: {self.weight_scales} is for weights without blocks: set block_size: 0"
            )
        if self.attention and self.activations == "none":
            raise ValueError("attention has no weights, only activations: set activations: static")
        if self.scales == "power_of_two" and self.block_size != 32:
            raise ValueError(f"power_of_two scales belong to blocks of 32, not block_size {self.block_size}")
        return self

    def requires_calibration(self) -> bool:
        """Static activations and smoothing need ranges, output rounding needs moments."""
        return self.activations == "static" or self.rounding == "output" or self.smooth is not None

    def check(self, target: Target) -> str | None:
        """Why `target` cannot run what these options write, or None."""
        if "fp8" not in target.precisions + target.emulated and target.dialect != "onnxruntime":
            others = [name for name in ("int8", "int4", "fp16") if name in target.precisions]
            return f"FP8 needs Ada, Hopper or newer; this target is {target.title}: use {' or '.join(others)}."
        if self.attention and target.dialect == "tensorrt" and "fp8" not in target.quantize.attention_matmuls:
            return f"{target.title} does not take attention's products in FP8: leave out `attention`."
        legal = target.quantize.block_sizes.get("fp8")
        if self.block_size and legal and self.block_size not in legal:
            return f"{target.title} takes FP8 blocks of {', '.join(map(str, legal))}, not {self.block_size}."
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace every weight that can be quantized; the rest is listed with its reason."""
        weights, skips = find_weights(model, self.ops or OPS, self.skip)
        if (weights or self.attention) and lift(model, 21 if self.block_size else 19, "FP8"):
            weights, skips = find_weights(model, self.ops or OPS, self.skip)
        left = self._left_by_rules(model, weights, context.target)
        if self.smooth is not None and weights:
            gaining = [weight for weight in weights if not _among(weight, left)]
            smooth(model, gaining, self.smooth, context, numerics.FP8_E4M3)
            weights, skips = find_weights(model, self.ops or OPS, self.skip)
        kept: list[Weight] = []
        for weight in weights:
            unfit = self._reason_against(weight, context.target)
            reason = unfit or _among(weight, left)
            if reason is None:
                kept.append(weight)
            else:
                shared = f"shares its weight with a layer that stays: {reason}"
                skips += [use.skip(reason if unfit or use.node in left else shared) for use in weight.uses]
        notes: tuple[str, ...] = ()
        amax: Mapping[str, float] = {}
        slots, unread = self._slots(model, kept, context.target)
        skips += unread
        if self.activations == "static" and (kept or slots):
            kept, slots, amax, unseen, notes = self._with_ranges(model, kept, slots, context)
            skips += unseen
        quantized = {use.node for weight in kept for use in weight.uses}
        slots = [each for each in slots if each.beside is None or each.beside in quantized]
        products = {each.node for each in slots if each.beside is None}
        skips = [each for each in skips if each.node not in {node.name for node in products if node.name}]
        if not kept and not slots:
            return PassResult(patterns=(Pattern("fp8", 0), *patterns(slots)), skips=tuple(skips), notes=notes)

        editor = Editor(model)
        changed: list[str] = []
        ready: list[Quantized] = []
        before = after = 0
        for done, (weight, tensors, parts) in enumerate(self._quantized(model, kept, context)):
            before += weight.tensor.nbytes
            after += sum(tensor.nbytes for tensor in tensors.values())
            changed += [use.name for use in weight.uses]
            ready.append((weight, tensors, parts))
            context.progress("quantize.fp8", done + 1, len(kept))
        for weight, tensors, parts in ready:
            if self.activations == "static":
                for use in weight.uses:
                    _quantize_input(editor, slot(use.node, 0), weight.tensor.dtype, amax)
            insert_weight_nodes(editor, weight, tensors, parts.nodes)
        known = {use.node: weight.tensor.dtype for weight in kept for use in weight.uses}
        for each in slots:
            dtype = each.value.dtype if each.beside is None else known[each.beside]
            _quantize_input(editor, each, dtype or ir.DataType.FLOAT, amax)
        if self.activations == "static":
            repeat_before(editor, model.graph, context.target.quantize.repeat_before.get("fp8", ()))
        return PassResult(
            patterns=(Pattern("fp8", len(changed)), *patterns(slots)),
            skips=tuple(skips),
            changed=(*changed, *(names.label_of(node) for node in products)),
            figures={"weight bytes before": before, "weight bytes after": after},
            notes=notes,
        )

    def _layout(self, weight: Weight, target: Target) -> FloatFormat:
        if self.block_size and self.scales == "power_of_two":
            return "mxfp8_trt" if target.dialect == "tensorrt" else "mxfp8"
        if self.block_size:
            return "fp8_block"
        one = self.weight_scales == "tensor"
        if self.weight_scales == "auto" and self.activations == "static":
            ops = target.quantize.one_scale_in_fp16.get("fp8", ())
            one = weight.tensor.dtype == ir.DataType.FLOAT16 and weight.uses[0].node.op_type in ops
        return "fp8_tensor" if one else "fp8"

    def _left_by_rules(self, model: ir.Model, weights: Sequence[Weight], target: Target) -> Mapping[ir.Node, str]:
        """The layers that stay in floating point for what or where they are, with the reason."""
        nodes = [use.node for weight in weights for use in weight.uses]
        static = self.activations == "static"
        form = "fp8" if static else "fp8 weights"  # no rule is about weights alone
        left = dict(at_edges(model, nodes, target, form, first=self.first_layer, last=self.last_layer))
        gaining = target.quantize.ops.get("fp8", OPS) if static and self.ops is None else OPS
        for node in nodes:
            if node.op_type not in gaining:
                left[node] = f"{node.op_type} gains nothing in FP8 on this target; `ops` with it quantizes it too"
        return left

    def _reason_against(self, weight: Weight, target: Target) -> str | None:
        if 0 in weight.shape:
            return f"its weight '{weight.name}' is empty"
        if not self.block_size:
            rank = len(weight.shape)
            stacked = rank > 2 and weight.uses[0].node.op_type != "Conv"
            if stacked and self._layout(weight, target) != "fp8_tensor":
                instead = "" if self.activations == "static" else ", or a block_size"
                why = f"its weight has {rank} dimensions; scales per channel take 2"
                return f"{why}: set weight_scales: tensor{instead}"
            return None
        if weight.uses[0].node.op_type == "Conv":
            return "Conv has no blocks along K: set block_size: 0 for it"
        if weight.summed % self.block_size:
            return f"its weight sums over K = {weight.summed}, not a multiple of block_size {self.block_size}"
        return None

    def _quantized(self, model: ir.Model, kept: Sequence[Weight], context: PassContext) -> Iterator[Quantized]:
        """Each weight with its parts: lazy, or made while its input's moments are at hand."""
        size = self.block_size or 32
        if self.rounding == "nearest":
            for weight in kept:
                parts = FloatParts(weight, self._layout(weight, context.target), block_size=size)
                yield weight, parts.tensors(), parts
            return

        def make(weight: Weight, moments: Moments | None) -> tuple[Quantized, Array | None]:
            layout = self._layout(weight, context.target)
            parts = FloatParts(weight, layout, block_size=size, moments=moments)
            tensors = parts.tensors() if moments is None else parts.evaluated()
            return (weight, tensors, parts), parts.restored

        found = calibrated(model, kept, context, "quantize.fp8", make, in_turn=self.in_turn)
        yield from (made for _, made in found)

    def _slots(self, model: ir.Model, weights: Sequence[Weight], target: Target) -> tuple[list[Slot], list[Skip]]:
        """What is quantized besides the inputs of weighted layers."""
        if self.activations == "none":
            return [], []
        nodes = [use.node for weight in weights for use in weight.uses if use.node.graph is model.graph]
        slots = skip_connections(nodes, self.skip) if "fp8" in target.quantize.residual_adds else []
        more, skips = attention_inputs(model, self.skip) if self.attention else ([], [])
        return [*slots, *more], skips

    def _with_ranges(
        self, model: ir.Model, weights: list[Weight], slots: list[Slot], context: PassContext
    ) -> tuple[list[Weight], list[Slot], Mapping[str, float], list[Skip], tuple[str, ...]]:
        """The weights and slots whose values all have a range, the ranges, the others, and calibration's notes."""
        uses = [use for weight in weights for use in weight.uses]
        seen = [_input_name(use) for use in uses if use.node.graph is model.graph]
        watched = list(dict.fromkeys(name for name in [*seen, *(each.name for each in slots)] if name))
        method = Method(name=self.calibration)
        found = collect(model, watched, context, method, numerics.FP8_E4M3, symmetric=True)
        kept, skips = [], []
        for weight in weights:
            missing = next((_input_name(use) for use in weight.uses if _input_name(use) not in found.of), None)
            if missing is None:
                kept.append(weight)
                continue
            why = found.unusable.get(missing, "lies in a sub-graph, where calibration does not reach")
            skips += [use.skip(f"its input '{missing}' {why}") for use in weight.uses]
        dead = [each for each in slots if each.name in found.unusable]
        skips += [each.skip(f"its input '{each.name}' {found.unusable[each.name]}") for each in dead]
        usable = [each for each in slots if each.name in found.of]
        return kept, usable, {name: found.of[name].amax for name in found.of}, skips, found.notes


def _among(weight: Weight, left: Mapping[ir.Node, str]) -> str | None:
    """The reason why one of a weight's layers stays, and with it the weight."""
    return next((left[use.node] for use in weight.uses if use.node in left), None)


def _input_name(use: Use) -> str:
    source = use.node.inputs[0]
    return "" if source is None else source.name or ""


def _quantize_input(editor: Editor, place: Slot, dtype: ir.DataType, amax: Mapping[str, float]) -> None:
    graph = place.node.graph
    assert isinstance(graph, ir.Graph)
    step = numerics.symmetric_scale(np.array(amax[place.name]), numerics.FP8_E4M3, dtype.numpy())
    scale = editor.constant(f"{place.name}.scale", step)
    zero = editor.constant("fp8_zero", np.zeros((), numerics.FP8_E4M3.dtype))
    place.node.replace_input_with(place.index, fake_quantize(editor, place.value, graph, scale, zero, None))
