"""Weights of matrix products as two 4-bit planes: 8-bit accuracy from 4-bit kernels.

Before: `y = MatMul(x, w)`, w `(K, N)` float
After: `y = MatMul(Concat(x, x), DequantizeLinear(codes, scales))`, codes `(2K, N)` INT4, scales
`(2K / block, N)`; or `MatMulNBits` on the concatenated input

The upper half of the codes is w rounded to 4 bits, the lower half is what that left over, rounded to 4 bits
with scales some 14 times finer: `w ≈ s₁·q₁ + s₂·q₂`. It pays where a product waits for its weights (few rows)
and the engine has a fast 4-bit kernel but no 8-bit one: half of FP16's bytes, a tenth of INT4's error.

Leaves alone, by name: what `skip` names, computed or left-hand weights, weights that are not 2-D, K not a
multiple of the block, Gemm with transA.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir
import pydantic

from passes import names
from passes.base import Pass, PassContext, PassResult, Pattern
from passes.opset import lift
from passes.quantize import _matmul_nbits
from passes.quantize._graph import (
    add_initializer,
    free_name,
    insert_behind,
    owning_graph,
    replace_weight,
    taken_names,
)
from passes.quantize._int4_plane_parts import PlaneParts
from passes.quantize._weights import Use, Weight, find_weights
from passes.target import Target


class QuantizeInt4Planes(Pass):
    """Store the weights of MatMul and Gemm as the sum of two 4-bit weights with block scales."""

    version: ClassVar[int] = 4

    ops: tuple[Literal["MatMul", "Gemm"], ...] = pydantic.Field(
        ("MatMul", "Gemm"), description="Operator types whose weights are quantized."
    )
    skip: tuple[str, ...] = pydantic.Field(
        (), description="Nodes to leave alone: shell patterns of node names, modules or operator types."
    )
    block_size: Literal[16, 32, 64, 128, 256] = pydantic.Field(
        32, description="Elements along K that share a scale."
    )
    form: Literal["standard", "matmulnbits"] = pydantic.Field(
        "standard",
        description="`standard` is DequantizeLinear with block scales (opset 21); `matmulnbits` is ONNX "
        "Runtime's operator, which TensorRT takes through a plugin library.",
    )

    def check(self, target: Target) -> str | None:
        """Why `target` cannot read what these options write, or None."""
        if "int4" not in target.precisions + target.emulated and target.dialect != "onnxruntime":
            return f"{target.title} has no INT4 weights."
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace every weight that can be quantized; the rest is listed with its reason."""
        weights, skips = find_weights(model, self.ops, self.skip)
        if weights and self.form == "standard" and lift(model, 21, "INT4 with block scales"):
            weights, skips = find_weights(model, self.ops, self.skip)
        taken = taken_names(model)
        doubled: dict[tuple[ir.Graph, ir.Value], ir.Value] = {}
        changed: list[str] = []
        before = after = 0
        for done, weight in enumerate(weights):
            context.progress("quantize.int4_planes", done, len(weights))
            reason = self._reason_against(weight)
            if reason is not None:
                skips += [use.skip(reason) for use in weight.uses]
                continue
            parts = PlaneParts(weight, self.block_size, by_column=self.form == "matmulnbits")
            before, after = before + weight.tensor.nbytes, after + parts.nbytes
            changed += [use.name for use in weight.uses]
            for use in weight.uses:
                _double_input(use, doubled, taken)
            self._replace(weight, parts, taken, model)
        figures: dict[str, float | int | str] = {"weight bytes before": before, "weight bytes after": after}
        return PassResult(
            patterns=(Pattern("int4 planes", len(changed)),),
            skips=tuple(skips),
            changed=tuple(changed),
            figures=figures if changed else {},
        )

    def _reason_against(self, weight: Weight) -> str | None:
        if len(weight.shape) != 2:
            return f"its weight has {len(weight.shape)} dimensions, two planes need 2"
        if 0 in weight.shape or weight.summed % self.block_size:
            return f"its weight sums over K = {weight.summed}, not a multiple of block_size {self.block_size}"
        for use in weight.uses:
            attribute = use.node.attributes.get("transA")
            if attribute is not None and attribute.as_int():
                return "Gemm has transA = 1, its input cannot be doubled along K in place"
        return _matmul_nbits.reason_against(weight) if self.form == "matmulnbits" else None

    def _replace(self, weight: Weight, parts: PlaneParts, taken: set[str], model: ir.Model) -> None:
        graph = owning_graph(weight.value)
        held: list[ir.Value | None] = [
            add_initializer(graph, free_name(taken, f"{weight.name}.{part}"), tensor)
            for part, tensor in parts.tensors().items()
        ]
        if self.form == "matmulnbits":
            model.graph.opset_imports.setdefault(_matmul_nbits.DOMAIN, 1)
            stacked = dataclasses.replace(weight, tensor=_Announced(weight, parts).tensor)
            _matmul_nbits.replace_products(stacked, held, block_size=self.block_size, accuracy_level=0)
            return
        dequantize = ir.node(
            "DequantizeLinear",
            held,
            {"axis": weight.axis, "block_size": self.block_size},
            name=free_name(taken, f"{weight.name}.dequantize"),
        )
        output = dequantize.outputs[0]
        output.name = free_name(taken, f"{weight.name}.dequantized")
        output.type, output.shape = ir.TensorType(weight.tensor.dtype), ir.Shape(parts.shape)
        replace_weight(weight, graph, [dequantize], output)


class _Announced:
    """The stacked weight as far as its shape goes: nothing may read its numbers."""

    def __init__(self, weight: Weight, parts: PlaneParts) -> None:
        def refuse() -> ir.TensorProtocol:
            raise RuntimeError(f"the stacked weight of '{weight.name}' exists in planes alone")

        self.tensor = ir.LazyTensor(refuse, dtype=weight.tensor.dtype, shape=ir.Shape(parts.shape))


def _double_input(use: Use, doubled: dict[tuple[ir.Graph, ir.Value], ir.Value], taken: set[str]) -> None:
    """Let a product read its input twice in a row; products that share an input share the copy."""
    node = use.node
    value, graph = node.inputs[0], node.graph
    assert value is not None
    assert isinstance(graph, ir.Graph)
    twice = doubled.get((graph, value))
    if twice is None:
        concat = ir.node("Concat", [value, value], {"axis": -1}, name=free_name(taken, f"{value.name}.twice"))
        twice = concat.outputs[0]
        twice.name = free_name(taken, f"{value.name}.doubled")
        twice.type = value.type
        names.carry_module(node, concat)
        insert_behind(graph, value, concat)
        doubled[graph, value] = twice
    node.replace_input_with(0, twice)
