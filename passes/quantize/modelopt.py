"""ModelOpt's ONNX quantization as it is, for comparison and for those who want NVIDIA's own placement.

Before: y = MatMul(x, w) + b
After, int8 and fp8: y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(codes, scales)) + b
After, int4:         y = MatMul(x, DequantizeLinear(codes, scales, block_size))

It runs in a process of its own. What it quantized is read off its graph, and its model is checked before it is
taken: layers it passes over are listed, a model without quantized layers is refused.

Leaves alone, each named: what `skip` names, what ModelOpt does not take (it gives no reasons), models that hold
quantized layers already.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

import onnx
import onnx_ir as ir
import pydantic

from passes import names
from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern
from passes.qdq import Editor
from passes.quantize import _modelopt_result, _modelopt_run
from passes.target import Target

LAYER_OPS = {
    "int8": ("MatMul", "Gemm", "Conv", "ConvTranspose"),
    "fp8": ("MatMul", "Gemm", "Conv"),
    "int4": ("MatMul", "Gemm"),
}
"""Layers accounted for one by one, per format."""


class QuantizeModelOpt(Pass):
    """Quantize with NVIDIA ModelOpt's ONNX path (needs the extra `modelopt`)."""

    format: Literal["int8", "fp8", "int4"] = pydantic.Field(
        default="int8", description="What ModelOpt calls quantize_mode; int4 quantizes weights alone."
    )
    calibration: Literal["entropy", "max"] = pydantic.Field(
        default="entropy", description="How ModelOpt chooses ranges for int8 and fp8."
    )
    algorithm: Literal["rtn", "awq_clip", "awq_lite", "awq_full"] = pydantic.Field(
        default="awq_clip", description="How ModelOpt chooses scales for int4: round to nearest, or a kind of AWQ."
    )
    block_size: Literal[16, 32, 64, 128] = pydantic.Field(
        default=32, description="Elements along K that share a scale, for int4."
    )
    ops: tuple[str, ...] | None = pydantic.Field(
        default=None, description="Operator types to quantize in int8 and fp8; unset: ModelOpt's own choice."
    )
    skip: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Nodes to leave in floating point: shell-style patterns of modules, nodes or operators.",
    )
    minutes: float = pydantic.Field(default=60.0, gt=0, description="When to give up waiting for ModelOpt.")

    @pydantic.field_validator("ops")
    @classmethod
    def _are_operators(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if not onnx.defs.has(name):
                known = {schema.name for schema in onnx.defs.get_all_schemas()}
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"'{name}' is no ONNX operator" + "".join(f"; did you mean '{item}'?" for item in near)
                )
        return value

    def requires_calibration(self) -> bool:
        """All but rounding INT4 to nearest; without data ModelOpt would take random numbers."""
        return not (self.format == "int4" and self.algorithm == "rtn")

    def missing(self) -> str | None:
        """How to install ModelOpt, or None."""
        return _modelopt_run.missing()

    def check(self, target: Target) -> str | None:
        """Whether `target` runs the format."""
        if self.format not in (*target.precisions, *target.emulated) and target.dialect != "onnxruntime":
            others = [name for name in ("fp8", "int8", "int4") if name in target.precisions]
            return f"{target.title} does not run {self.format.upper()}; use {' or '.join(others) or 'fp16'}."
        if self.format == "int4" and self.ops is not None:
            return "ModelOpt's int4 takes no list of operator types; name nodes to leave out under skip."
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace the graph by ModelOpt's.

        Raises:
            PassFailed: When ModelOpt is missing or stops, or its model has no quantized layer or is broken.
        """
        if _modelopt_result.is_quantized(model):
            note = "The model holds quantizers already; ModelOpt is given floating-point models only."
            return PassResult(patterns=(Pattern("layer", 0), Pattern("other", 0)), notes=(note,))
        before = model.clone()
        _name_nodes(before)
        left_out = {
            str(node.name): "listed under skip"
            for graph in before.graphs()
            for node in graph
            if names.matches(node, self.skip)
        }
        if self.format == "int4" and self.algorithm != "rtn":
            _refuse_ragged(context)
        with _modelopt_run.produce(
            before, self._arguments(left_out), context,
            calibrated=self.requires_calibration(), minutes=self.minutes,
        ) as produced:  # fmt: skip
            made = produced.model
        found = _modelopt_result.sites(made, before, LAYER_OPS[self.format], left_out)
        if not found.layers and not found.others:
            reasons = "; ".join(f"{item.node}: {item.reason}" for item in found.skips[:3])
            raise PassFailed(
                f"modelopt: ModelOpt {produced.version} quantized nothing ({reasons or 'no layer that it takes'}). "
                f"Use quantize.{self.format}, which says why it leaves a layer alone."
            )
        error = _modelopt_result.refuse_broken(made, before, context)
        _modelopt_result.restore_notes(made, before)
        sizes = [_weight_bytes(item) for item in (before, made)]
        _modelopt_result.adopt(model, made)
        figures: dict[str, float | int | str] = {
            "ModelOpt": produced.version,
            "ModelOpt seconds": round(produced.seconds, 1),
            "weight bytes before": sizes[0],
            "weight bytes after": sizes[1],
        }
        notes = []
        if error is None:
            notes.append("ModelOpt's model was not run: there is no calibration batch or no engine here.")
        else:
            figures["relative error on a calibration batch"] = float(f"{error:.4g}")
        return PassResult(
            patterns=(Pattern("layer", len(found.layers)), Pattern("other", len(found.others))),
            skips=found.skips,
            changed=(*found.layers, *found.others),
            figures=figures,
            notes=tuple(notes),
        )

    def _arguments(self, left_out: dict[str, str]) -> dict[str, Any]:
        """What `modelopt.onnx.quantization.quantize` is called with; it takes node names as patterns."""
        arguments: dict[str, Any] = {
            "quantize_mode": self.format,
            "nodes_to_exclude": [f"^{re.escape(name)}$" for name in left_out],
        }
        if self.format == "int4":
            # Its "rtn" writes quantizers without a block size, which no engine reads.
            method = "rtn_dq" if self.algorithm == "rtn" else self.algorithm
            return {**arguments, "calibration_method": method, "block_size": self.block_size}
        # dq_only: weights are stored quantized; else the file keeps them in floating point.
        arguments |= {"calibration_method": self.calibration, "dq_only": True}
        return arguments if self.ops is None else {**arguments, "op_types_to_quantize": list(self.ops)}


def _name_nodes(model: ir.Model) -> None:
    """Nodes are told apart by name: give one to those without, or with another's."""
    editor = Editor(model)
    seen: set[str] = set()
    for graph in model.graphs():
        for node in graph:
            if not node.name or node.name in seen:
                node.name = editor.fresh(node.name or f"{node.outputs[0].name}/{node.op_type}")
            seen.add(node.name)


def _refuse_ragged(context: PassContext) -> None:
    """AWQ lays all batches end to end, so all axes but the first must agree."""
    if context.calibration is None:
        return
    shapes: dict[str, tuple[int, ...]] = {}
    for feeds in context.calibration.feeds():
        for name, array in feeds.items():
            first = shapes.setdefault(name, array.shape)
            if array.shape[1:] != first[1:]:
                raise PassFailed(
                    f"modelopt: ModelOpt's AWQ needs calibration batches of one shape; input '{name}' has "
                    f"{list(first)} and {list(array.shape)}. Pad the data to one length, or use algorithm: rtn."
                )


def _weight_bytes(model: ir.Model) -> int:
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)
