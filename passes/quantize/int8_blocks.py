"""Weights of matrix products in 8-bit blocks, activations in 8 bits by token and block, or as they are.

Before: `y = MatMul(x, w)`, w `(K, N)` float
After: `y = MatMulNBits(x, codes, scales)`, bits 8, codes `(N, K / block, block)` bytes around 128, scales
`(N, K / block)`

For products that wait for their weights (few rows) and bear no 4-bit error: half of FP16's bytes, a quarter of
FP32's, and no calibration. At `accuracy_level` 4 ONNX Runtime gives every token's activations dynamic scales of
their own, where `quantize.int8` has one scale for all tokens; at 0 to 3 they stay in floating point. Gemm with
either transB and a bias is taken too. TensorRT takes the product from `plugins: [builtin]` under `engine:`, in
FP16; a bias becomes an Add there.

Leaves alone, by name: what `skip` names, computed or left-hand weights, weights that are not 2-D or bfloat16,
weights that something else reads in floating point, Gemm with transA, or alpha or beta other than 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import onnx_ir as ir
import pydantic

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.quantize import _matmul_nbits
from passes.quantize._graph import add_initializer, free_name, owning_graph, taken_names
from passes.quantize._int8_block_parts import Int8BlockParts
from passes.quantize._weights import Weight, find_weights


class QuantizeInt8Blocks(Pass):
    """Store the weights of MatMul and Gemm as 8-bit integers with one scale per block along K.

    Weights stay lazy: each is read, quantized and written when the model is saved, one at a time.
    """

    version: ClassVar[int] = 4

    ops: tuple[Literal["MatMul", "Gemm"], ...] = pydantic.Field(
        ("MatMul", "Gemm"), description="Operator types whose weights are quantized."
    )
    skip: tuple[str, ...] = pydantic.Field(
        (), description="Nodes to leave alone: shell patterns of node names, modules or operator types."
    )
    block_size: Literal[16, 32, 64, 128, 256] = pydantic.Field(
        128, description="Elements along K that share a scale."
    )
    accuracy_level: Literal[0, 1, 2, 3, 4] = pydantic.Field(
        4,
        description="What MatMulNBits computes in: 1 float32, 2 float16, 3 bfloat16, 4 int8 activations "
        "(fastest; in float32 between casts for FP16 models on a CPU), 0 its own choice. For TensorRT always 1: "
        "the plugin sums in float32.",
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace every weight that can be quantized; the rest is listed with its reason."""
        weights, skips = find_weights(model, self.ops, self.skip)
        taken = taken_names(model)
        floats = _matmul_nbits.Floats(taken)
        for_tensorrt = context.target.dialect == "tensorrt"
        changed: list[str] = []
        notes: tuple[str, ...] = ()
        before = after = 0
        for done, weight in enumerate(weights):
            context.progress("quantize.int8_blocks", done, len(weights))
            reason = self._reason_against(weight)
            if reason is not None:
                skips += [use.skip(reason) for use in weight.uses]
                continue
            graph = owning_graph(weight.value)
            tensors: Mapping[str, ir.TensorProtocol] = Int8BlockParts(weight, self.block_size).tensors()
            widen = _matmul_nbits.needs_floats(weight, self.accuracy_level, context.target)
            if widen:
                tensors, notes = _matmul_nbits.with_float_scales(tensors), (_matmul_nbits.IN_FLOATS,)
            before += weight.tensor.nbytes
            after += sum(tensor.nbytes for tensor in tensors.values())
            changed += [use.name for use in weight.uses]
            held: list[ir.Value | None] = [
                add_initializer(graph, free_name(taken, f"{weight.name}.{part}"), tensor)
                for part, tensor in tensors.items()
            ]
            _matmul_nbits.replace_products(
                weight,
                held,
                block_size=self.block_size,
                accuracy_level=1 if for_tensorrt else self.accuracy_level,
                bits=8,
                bias_apart=for_tensorrt,
                floats=floats if widen else None,
            )
            model.graph.opset_imports.setdefault(_matmul_nbits.DOMAIN, 1)
        figures: dict[str, float | int | str] = {"weight bytes before": before, "weight bytes after": after}
        return PassResult(
            patterns=(Pattern("int8 blocks", len(changed)),),
            skips=tuple(skips),
            changed=tuple(changed),
            figures=figures if changed else {},
            notes=notes,
        )

    def _reason_against(self, weight: Weight) -> str | None:
        if weight.summed == 0 or 0 in weight.shape:
            return f"its weight '{weight.name}' is empty"
        return _matmul_nbits.reason_against(weight)
