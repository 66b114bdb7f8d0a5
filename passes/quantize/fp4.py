"""Weights of matrix products in 4-bit floating-point blocks; activations as they are or quantized on the fly.

Before: `y = MatMul(x, w)`
After (NVFP4): `y = MatMul(x, DequantizeLinear(codes, DequantizeLinear(scales, global), block_size = 16))`, codes
FLOAT4E2M1 shaped like w, scales FLOAT8E4M3FN, one per 16 elements along K, global float32
After (MXFP4): `y = MatMul(x, DequantizeLinear(codes, scales, block_size = 32))`, scales powers of two
With `activations: dynamic`, x goes through TensorRT's `TRT_FP4DynamicQuantize` and two DequantizeLinear first.

Leaves alone, by name: what `skip` names, computed or left-hand weights, 1-D weights, weights that something
else reads in floating point, K not a multiple of the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import onnx_ir as ir
import pydantic

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.opset import lift
from passes.qdq import Editor
from passes.quantize._float_parts import FloatParts
from passes.quantize._fp4_activations import calibrated_inputs, quantize_input
from passes.quantize._graph import insert_weight_nodes
from passes.quantize._moments import Array, Moments, calibrated
from passes.quantize._weights import Weight, find_weights
from passes.target import Target

Quantized = tuple[Weight, Mapping[str, ir.TensorProtocol], FloatParts]


class QuantizeFp4(Pass):
    """Store the weights of MatMul and Gemm as 4-bit floating-point numbers in blocks along K.

    Weights stay lazy: each is read, quantized and written when the model is saved, one at a time.
    """

    version: ClassVar[int] = 4

    ops: tuple[Literal["MatMul", "Gemm"], ...] = pydantic.Field(
        ("MatMul", "Gemm"), description="Operator types whose weights are quantized."
    )
    skip: tuple[str, ...] = pydantic.Field(
        (), description="Nodes to leave alone: shell patterns of node names, modules or operator types."
    )
    format: Literal["nvfp4", "mxfp4"] = pydantic.Field(
        "nvfp4",
        description="`nvfp4`: blocks of 16, FP8 scales, one float32 scale; `mxfp4`: blocks of 32, powers of two.",
    )
    activations: Literal["none", "dynamic"] = pydantic.Field(
        "none",
        description="`dynamic` quantizes each layer's input to NVFP4 while it runs (TensorRT only, needs "
        "calibration data for the input's range); `none` leaves inputs as they are.",
    )
    algorithm: Literal["rtn", "mse", "gptq"] = pydantic.Field(
        "mse",
        description="How NVFP4 block scales are chosen: `rtn` from each block's range, `mse` by a search for the "
        "least squared error.",
    )
    in_turn: bool = pydantic.Field(
        True,
        description="GPTQ: calibrate each layer on what the layers before it give once they are "
        "quantized, and make good for what they lost. Runs the data once per layer input; not done above 1 GiB.",
    )

    def requires_calibration(self) -> bool:
        """Dynamic activations take their tensor's scale from the calibration data, GPTQ its moments."""
        return self.activations == "dynamic" or self.algorithm == "gptq"

    def check(self, target: Target) -> str | None:
        """Why `target` cannot run what these options write, or None."""
        if self.activations == "dynamic" and self.format != "nvfp4":
            return "Dynamic activations exist for nvfp4 only; set format: nvfp4 or activations: none."
        if "fp4" not in target.precisions + target.emulated:
            others = [name for name in ("fp8", "int4", "int8") if name in target.precisions]
            return f"FP4 needs Blackwell; this target is {target.title}: use {' or '.join(others) or 'fp16'}."
        legal = target.quantize.block_sizes.get("fp4", (self.block_size,))
        if self.block_size not in legal:
            return f"{target.title} takes FP4 blocks of {', '.join(map(str, legal))}: use format: nvfp4."
        if self.activations == "dynamic" and target.dialect != "tensorrt":
            return f"{target.title} has no TRT_FP4DynamicQuantize; set activations: none."
        return None

    @property
    def block_size(self) -> int:
        """Elements along K per scale: the format's own."""
        return 16 if self.format == "nvfp4" else 32

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace every weight that can be quantized; the rest is listed with its reason."""
        weights, skips = find_weights(model, self.ops, self.skip)
        if weights and lift(model, 23, "FP4"):
            weights, skips = find_weights(model, self.ops, self.skip)
        kept: list[Weight] = []
        for weight in weights:
            if weight.summed % self.block_size or 0 in weight.shape:
                reason = (
                    f"its weight sums over K = {weight.summed}, not a positive multiple of {self.format}'s "
                    f"block of {self.block_size}"
                )
                skips += [use.skip(reason) for use in weight.uses]
                continue
            kept.append(weight)
        if not kept:
            return PassResult(patterns=(Pattern("fp4", 0),), skips=tuple(skips))

        amax: Mapping[str, float] = {}
        if self.activations == "dynamic":
            amax, kept, unseen = calibrated_inputs(model, kept, context)
            skips += unseen
        editor = Editor(model)
        changed: list[str] = []
        ready: list[Quantized] = []
        before = after = 0
        for done, (weight, tensors, parts) in enumerate(self._quantized(model, kept, context)):
            before += weight.tensor.nbytes
            after += sum(tensor.nbytes for tensor in tensors.values())
            changed += [use.name for use in weight.uses]
            ready.append((weight, tensors, parts))
            context.progress("quantize.fp4", done + 1, len(kept))
        for weight, tensors, parts in ready:
            if self.activations == "dynamic":
                for use in weight.uses:
                    quantize_input(editor, use.node, amax)
            insert_weight_nodes(editor, weight, tensors, parts.nodes)
        return PassResult(
            patterns=(Pattern("fp4", len(changed)),),
            skips=tuple(skips),
            changed=tuple(changed),
            figures={"weight bytes before": before, "weight bytes after": after},
        )

    def _quantized(self, model: ir.Model, kept: Sequence[Weight], context: PassContext) -> Iterator[Quantized]:
        """Each weight with its parts: lazy, or for GPTQ made while its input's moments are at hand."""
        if self.algorithm != "gptq":
            for weight in kept:
                parts = FloatParts(weight, self.format, search=self.algorithm == "mse")
                yield weight, parts.tensors(), parts
            return

        def make(weight: Weight, moments: Moments | None) -> tuple[Quantized, Array | None]:
            parts = FloatParts(weight, self.format, search=True, moments=moments)
            tensors = parts.tensors() if moments is None else parts.evaluated()
            return (weight, tensors, parts), parts.restored

        found = calibrated(model, kept, context, "quantize.fp4", make, in_turn=self.in_turn)
        yield from (made for _, made in found)
