"""Weights of matrix products in 4-bit blocks, activations as they are.

Before: `y = MatMul(x, w)`, w `(K, N)` float
After (TensorRT, standard ONNX): `y = MatMul(x, DequantizeLinear(codes, scales))`, codes `(K, N)` INT4, scales
`(K / block, N)`, blocks along K
After (ONNX Runtime): `y = MatMulNBits(x, codes, scales)`, codes `(N, K / block, block / 2)` bytes

Gemm with either transB and weights behind a Transpose keep their blocks along K. Leaves alone, by name: what
`skip` names, computed or left-hand weights, 1-D weights, weights that something else reads in floating point,
K not a multiple of the block where the target wants whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
import pydantic

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.opset import lift
from passes.quantize import _matmul_nbits
from passes.quantize._blocks import restored
from passes.quantize._channel_factors import apply_factors, awq_factors, by_input
from passes.quantize._graph import add_initializer, free_name, owning_graph, replace_weight, taken_names
from passes.quantize._int4_parts import Int4Parts
from passes.quantize._moments import Array, Moments, calibrated
from passes.quantize._scales import Algorithm, chooser
from passes.quantize._weights import Weight, find_weights
from passes.target import Target

BLOCK_SIZES = (16, 32, 64, 128, 256)


class QuantizeInt4(Pass):
    """Store the weights of MatMul and Gemm as 4-bit integers with one scale per block along K.

    Weights stay lazy: each is read, quantized and written when the model is saved, one at a time.
    """

    version: ClassVar[int] = 6

    ops: tuple[Literal["MatMul", "Gemm"], ...] = pydantic.Field(
        ("MatMul", "Gemm"), description="Operator types whose weights are quantized."
    )
    skip: tuple[str, ...] = pydantic.Field(
        (), description="Nodes to leave alone: shell patterns of node names, modules or operator types."
    )
    block_size: int = pydantic.Field(
        32, description="Elements along K that share a scale: 16 to 256, a power of 2."
    )
    symmetric: bool = pydantic.Field(
        True, description="One scale per block and no zero point; false adds a 4-bit zero point per block."
    )
    algorithm: Literal["auto", "rtn", "mse", "hqq", "awq", "gptq"] = pydantic.Field(
        "auto",
        description="How scales are chosen: `rtn` from each block's range; `mse` by a search for the least squared "
        "error; `hqq` by half-quadratic turns that forgive outliers; `awq` as mse, with input channels scaled "
        "first by a search on the calibration data (the division goes into what makes the input, or a Mul); "
        "`gptq` for the least output error on the data, rounding included. `auto` is gptq with data and mse "
        "without.",
    )
    in_turn: bool = pydantic.Field(
        True,
        description="GPTQ: calibrate each layer on what the layers before it give once they are "
        "quantized, and make good for what they lost. Runs the data once per layer input; not done above 1 GiB.",
    )
    form: Literal["auto", "standard", "matmulnbits"] = pydantic.Field(
        "auto",
        description="Graph form: `standard` is DequantizeLinear with block scales (opset 21), "
        "`matmulnbits` is ONNX Runtime's operator; `auto` takes the latter for ONNX Runtime.",
    )
    accuracy_level: Literal[0, 1, 2, 3, 4] = pydantic.Field(
        4,
        description="What MatMulNBits computes in: 1 float32, 2 float16, 3 bfloat16, 4 int8 activations "
        "(fastest; in float32 between casts for FP16 models on a CPU), 0 its own choice.",
    )

    @pydantic.field_validator("block_size")
    @classmethod
    def _is_a_block_size(cls, value: int) -> int:
        if value not in BLOCK_SIZES:
            raise ValueError(f"block_size is {value}, needs one of {', '.join(map(str, BLOCK_SIZES))}")
        return value

    def requires_calibration(self) -> bool:
        """GPTQ and AWQ measure what flows into each layer; the rest looks at weights alone."""
        return self.algorithm in ("gptq", "awq")

    def check(self, target: Target) -> str | None:
        """Why `target` cannot read what these options write, or None."""
        if "int4" not in target.precisions + target.emulated and target.dialect != "onnxruntime":
            other = next((name for name in ("fp8", "int8", "fp16") if name in target.precisions), "fp16")
            return f"{target.title} has no INT4 weights; use {other}."
        legal = target.quantize.block_sizes.get("int4", BLOCK_SIZES)
        if self.block_size not in legal:
            return f"{target.title} takes INT4 blocks of {', '.join(map(str, legal))}, not {self.block_size}."
        if not self.symmetric and target.dialect == "tensorrt" and "int4" not in target.quantize.asymmetric:
            return f"{target.title} takes symmetric INT4 only; set symmetric: true."
        if self.form == "matmulnbits" and target.dialect != "onnxruntime":
            return f"{target.title} does not know MatMulNBits; set form: standard."
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace every weight that can be quantized; the rest is listed with its reason."""
        standard_only = context.target.dialect != "onnxruntime"
        use_nbits = self.form == "matmulnbits" or (self.form == "auto" and not standard_only)
        weights, skips = find_weights(model, self.ops, self.skip)
        writes_blocks = any(not use_nbits or _matmul_nbits.reason_against(weight) for weight in weights)
        if writes_blocks and lift(model, 21, "INT4 with block scales"):
            weights, skips = find_weights(model, self.ops, self.skip)
        scaled: dict[str, int] = {}
        if self.algorithm == "awq":
            groups = by_input(model, weights)
            restore = partial(
                restored, block=self.block_size, choose=chooser("mse", np.float32, asymmetric=not self.symmetric)
            )
            scaled = apply_factors(model, groups, awq_factors(model, groups, context, "quantize.int4", restore))
            weights, skips = find_weights(model, self.ops, self.skip)
        kept: list[tuple[Weight, bool]] = []
        notes = []
        for weight in weights:
            reason = self._reason_against(weight, whole_blocks=standard_only)
            if reason is not None:
                skips += [use.skip(reason) for use in weight.uses]
                continue
            fallback = _matmul_nbits.reason_against(weight) if use_nbits else None
            if fallback is not None:
                notes.append(f"'{weight.name}' takes the standard form: {fallback}.")
            kept.append((weight, use_nbits and fallback is None))

        changed: list[str] = []
        prepared: list[tuple[Weight, bool, Mapping[str, ir.TensorProtocol], _matmul_nbits.Floats | None]] = []
        before = after = 0
        taken = taken_names(model) if kept else set()
        floats = _matmul_nbits.Floats(taken)
        for done, (weight, nbits, made) in enumerate(self._quantized(model, kept, context)):
            widen = nbits and _matmul_nbits.needs_floats(weight, self.accuracy_level, context.target)
            tensors = _matmul_nbits.with_float_scales(made) if widen else made
            changed += [use.name for use in weight.uses]
            before += weight.tensor.nbytes
            after += sum(tensor.nbytes for tensor in tensors.values())
            prepared.append((weight, nbits, tensors, floats if widen else None))
            context.progress("quantize.int4", done + 1, len(kept))
        for weight, nbits, tensors, casts in prepared:
            self._replace(weight, tensors, taken, casts, nbits=nbits)
            if nbits:
                model.graph.opset_imports.setdefault(_matmul_nbits.DOMAIN, 1)
        if any(casts is not None for *_, casts in prepared):
            notes.append(_matmul_nbits.IN_FLOATS)
        figures: dict[str, float | int | str] = {"weight bytes before": before, "weight bytes after": after}
        figures.update({f"AWQ divisions {how}": count for how, count in scaled.items()})
        return PassResult(
            patterns=(Pattern("int4", len(changed)),),
            skips=tuple(skips),
            changed=tuple(changed),
            figures=figures if kept else {},
            notes=tuple(notes),
        )

    def _reason_against(self, weight: Weight, *, whole_blocks: bool) -> str | None:
        rest = weight.summed % self.block_size
        if weight.summed == 0 or 0 in weight.shape:
            return f"its weight '{weight.name}' is empty"
        if whole_blocks and rest:
            return (
                f"its weight sums over K = {weight.summed}, not a multiple of block_size {self.block_size}; "
                "the target wants whole blocks"
            )
        return None

    def _algorithm(self, context: PassContext) -> Algorithm:
        if self.algorithm == "auto":
            return "mse" if context.calibration is None else "gptq"
        return "mse" if self.algorithm == "awq" else self.algorithm

    def _quantized(
        self, model: ir.Model, kept: Sequence[tuple[Weight, bool]], context: PassContext
    ) -> Iterator[tuple[Weight, bool, Mapping[str, ir.TensorProtocol]]]:
        """Each weight with its parts: lazy, or for GPTQ made while its input's moments are at hand."""
        algorithm = self._algorithm(context)
        if algorithm != "gptq":
            for weight, nbits in kept:
                parts = Int4Parts(weight, self.block_size, self.symmetric, algorithm, by_column=nbits)
                yield weight, nbits, parts.tensors()
            return
        form = {id(weight): nbits for weight, nbits in kept}

        def make(weight: Weight, moments: Moments | None) -> tuple[Mapping[str, ir.TensorProtocol], Array | None]:
            parts = Int4Parts(
                weight, self.block_size, self.symmetric, "gptq", by_column=form[id(weight)], moments=moments
            )
            return parts.tensors() if moments is None else parts.evaluated(), parts.restored

        weights = [weight for weight, _ in kept]
        for weight, tensors in calibrated(model, weights, context, "quantize.int4", make, in_turn=self.in_turn):
            yield weight, form[id(weight)], tensors

    def _replace(
        self, weight: Weight, tensors: Mapping[str, ir.TensorProtocol], taken: set[str],
        floats: _matmul_nbits.Floats | None, *, nbits: bool,
    ) -> None:  # fmt: skip
        """Store a weight's parts, for MatMulNBits or behind DequantizeLinear."""
        graph = owning_graph(weight.value)
        held: list[ir.Value | None] = [
            add_initializer(graph, free_name(taken, f"{weight.name}.{part}"), tensor)
            for part, tensor in tensors.items()
        ]
        if nbits:
            _matmul_nbits.replace_products(
                weight, held, block_size=self.block_size, accuracy_level=self.accuracy_level, floats=floats
            )
            return
        dequantize = ir.node(
            "DequantizeLinear",
            held,
            {"axis": weight.axis, "block_size": self.block_size},
            name=free_name(taken, f"{weight.name}.dequantize"),
        )
        output = dequantize.outputs[0]
        output.name = free_name(taken, f"{weight.name}.dequantized")
        output.type, output.shape = ir.TensorType(weight.tensor.dtype), ir.Shape(weight.shape)
        replace_weight(weight, graph, [dequantize], output)
