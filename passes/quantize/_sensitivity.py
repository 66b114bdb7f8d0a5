"""How much each layer's own output errs when it alone is quantized: all layers in one run over the data.

Before: y = MatMul(x, w)
After:  y = MatMul(x, w);  t = MatMul(x, w)  [the twin, quantized];  error = ReduceSumSquare(t - y)

Every twin reads the floating-point activation, so that no layer answers for another's error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from passes import names
from passes.base import Pass, PassContext, PassFailed
from passes.qdq import Editor
from passes.quantize._edges import Choice, at_edges

TWIN = "sensitivity_twin_of_"


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """One layer in one format.

    Attributes:
        error: Squared error of the layer's output over its squared norm, both over all calibration data.
        reason: Why the format cannot take the layer, or "".
    """

    error: float
    reason: str = ""


def measure(
    model: ir.Model, outputs: Sequence[str], form: str, quantizer: Pass, context: PassContext
) -> Mapping[str, Sensitivity]:
    """Quantize a twin of each layer and compare it with its original on the calibration data.

    Args:
        model: The floating-point model; it stays as it is.
        outputs: Names of the first outputs of the layers' nodes, in the main graph.
        form: The format, as the target's rules spell it.
        quantizer: Its pass; its `skip` names the originals.
        context: Calibration data.

    Returns:
        By output.

    Raises:
        PassFailed: When there is no calibration data.
    """
    if context.calibration is None:
        raise PassFailed(
            "auto: sensitivity is measured on calibration data, and there is none. "
            "Add `calibration:` to the recipe."
        )
    work = model.clone()
    editor = Editor(work)
    by_output = {names.output_of(node): node for node in work.graph}
    for name in outputs:
        original = by_output[name]
        output = original.outputs[0]
        data, weight, *rest = original.inputs
        assert weight is not None
        twin = editor.node(
            original.op_type, [data, _copy(editor, weight, original), *rest], [f"{output.name}_twin"],
            attributes=original.attributes,
        )  # fmt: skip
        twin.name = TWIN + name
        twin.outputs[0].type, twin.outputs[0].shape = output.type, output.shape
        difference = editor.node("Sub", [twin.outputs[0], output], [f"{output.name}_difference"])
        lost = editor.node(
            "ReduceSumSquare", [difference.outputs[0]], [f"{output.name}_error"], attributes={"keepdims": 0}
        )
        whole = editor.node("ReduceSumSquare", [output], [f"{output.name}_energy"], attributes={"keepdims": 0})
        work.graph.insert_after(original, [twin, difference, lost, whole])
        kind = output.type or next((value.type for value in original.inputs if value and value.type), None)
        for made in (lost, whole):  # or a conversion to a newer opset drops what nothing reads
            made.outputs[0].type, made.outputs[0].shape = kind, ir.Shape(())
            work.graph.outputs.append(made.outputs[0])
    places = _places(
        model, [node for node in model.graph if names.output_of(node) in outputs], form, quantizer, context
    )
    result = _wherever(quantizer).apply(work, context)
    refused = {item.node: item.reason for item in result.skips} | {
        TWIN + names.output_of(node): why for node, why in places.items()
    }
    watched = [f"{output}_{what}" for output in outputs for what in ("error", "energy")]
    totals = dict.fromkeys(watched, 0.0)
    for done, observed in enumerate(context.calibration.observe(work, watched)):
        for key, value in observed.items():
            totals[key] += float(value)
        context.progress("measure sensitivity", done + 1, done + 2)
    return {
        output: Sensitivity(
            totals[f"{output}_error"] / max(totals[f"{output}_energy"], 1e-30), refused.get(TWIN + output, "")
        )
        for output in outputs
    }


def _copy(editor: Editor, weight: ir.Value, before: ir.Node) -> ir.Value:
    """A weight of the twins' own: formats leave one alone that something else reads in floating point."""

    def make() -> ir.Value:
        maker, stored = weight.producer(), weight.const_value
        if maker is None:
            assert stored is not None
            lazy = ir.LazyTensor(lambda: stored, dtype=stored.dtype, shape=ir.Shape(stored.shape.numpy()))
            return editor.tensor(f"{weight.name}_twin", lazy)
        inputs = [
            _copy(editor, value, before) if at == 0 and value else value for at, value in enumerate(maker.inputs)
        ]
        node = editor.node(maker.op_type, inputs, [f"{weight.name}_twin"], attributes=maker.attributes)
        node.outputs[0].type, node.outputs[0].shape = weight.type, weight.shape
        editor.model.graph.insert_before(before, node)
        return node.outputs[0]

    made: ir.Value = editor.shared(("twin", id(weight)), make)
    return made


def _places(
    model: ir.Model, nodes: Sequence[ir.Node], form: str, quantizer: Pass, context: PassContext
) -> Mapping[ir.Node, str]:
    """The layers that stay for their place in the model, which a twin does not have."""
    first: Choice = getattr(quantizer, "first_layer", "quantize")
    last: Choice = getattr(quantizer, "last_layer", "quantize")
    return at_edges(model, nodes, context.target, form, first=first, last=last)


def _wherever(quantizer: Pass) -> Pass:
    """The pass, for layers at any place."""
    fields = {"first_layer", "last_layer"} & set(type(quantizer).model_fields)
    return quantizer.model_copy(update=dict.fromkeys(fields, "quantize"))
