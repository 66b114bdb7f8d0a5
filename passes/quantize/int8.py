"""INT8: weights symmetric per output channel, activations eight bits, dynamic or calibrated.

Before: y = MatMul(x, w) + b
After (ONNX Runtime):  q, s, z = DynamicQuantizeLinear(x);  y = MatMulIntegerToFloat(q, w_int8, s, w_scale, z, , b)

Leaves alone, each named with its reason: weights that are not stored constants or not of rank 2, layers in
local functions, layers whose weights are all zero or not finite, what `skip` names.
"""

from __future__ import annotations

import onnx_ir as ir
import pydantic

from passes import layers as weighted
from passes import names
from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern, Skip
from passes.layers import Layer
from passes.qdq import Editor, drop_unused_constants
from passes.quantize import _integer_ops
from passes.quantize._channel_weights import ChannelWeight, to_int8


class QuantizeInt8(Pass):
    """Quantize weighted layers to INT8."""

    ops: tuple[str, ...] = pydantic.Field(
        default=("MatMul", "Gemm"), description="Operator types to quantize, where they have a stored weight."
    )
    skip: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Layers to leave in floating point: shell-style patterns of modules, nodes or operators.",
    )
    weight_clip: bool = pydantic.Field(
        default=True,
        description="Clip weights, per channel, where that gives the least squared error.",
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Quantize every layer that can be, and name the others."""
        if context.target.dialect != "onnxruntime":
            raise PassFailed("int8: dynamic activations have no form that TensorRT reads. Use activations: static.")
        found, skips = weighted.find(model, self.ops)
        editor = Editor(model)
        changed: list[str] = []
        notes: list[str] = []
        weights: dict[object, ChannelWeight] = {}
        spent: list[ir.Value] = []
        before = after = 0
        for done, layer in enumerate(found):
            context.progress("quantize layers", done, len(found))
            reason = self._refusal(layer)
            if reason is None:
                try:
                    if layer.weight.key not in weights:
                        weights[layer.weight.key] = to_int8(layer.weight, layer.channel_axis, self.weight_clip)
                    weight = weights[layer.weight.key]
                except ValueError as error:
                    reason = str(error)
                else:
                    if weight.zero_channels == layer.channels:
                        reason = f"weight '{layer.weight.name}' is all zeros"
            if reason is not None:
                skips.append(weighted.skip(layer.node, reason))
                continue
            size = len(weight.scale) * 4 + weight.quantized.nbytes
            before += layer.weight.stored.nbytes
            after += size
            spent += [layer.weight.source, *(item for item in layer.node.inputs[1:] if item is not None)]
            changed.append(layer.name)
            _integer_ops.replace_layer(editor, layer, weight, None)
        drop_unused_constants(spent)
        return PassResult(
            patterns=(Pattern("layer", len(changed)),),
            skips=tuple(_in_one_list(skips)),
            changed=tuple(changed),
            figures={"weight bytes before": before, "weight bytes after": after},
            notes=tuple(notes),
        )

    def _refusal(self, layer: Layer) -> str | None:
        if names.matches(layer.node, self.skip):
            return "listed under skip"
        return _integer_ops.refusal(layer)


def _in_one_list(skips: list[Skip]) -> list[Skip]:
    """Skips in the order they were met, each once."""
    return list(dict.fromkeys(skips))
