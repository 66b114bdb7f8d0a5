"""Low-precision operators that this machine's engine lacks, lowered to ones that it has, exactly.

Before: `w = DequantizeLinear(fp4 codes, scales)`, `w = TRT_MXFP8DequantizeLinear(codes, scales)`
After: w is an initializer with the very numbers that the operators give
Before: `q, s = TRT_FP4DynamicQuantize(x, g)`; `y = DequantizeLinear(q, DequantizeLinear(s, g))`
After: the same arithmetic in standard float32 and FP8 operators

For judging accuracy, never for shipping: the weights are as large as before. Each lowering is held to
`passes.block_formats` bit for bit by a test. Leaves alone what ONNX Runtime runs itself: INT8, FP8 and INT4.
"""

from __future__ import annotations

import onnx_ir as ir

from passes import names
from passes.base import Pass, PassContext, PassResult, Pattern, Skip
from passes.qdq import Editor, drop_unused_constants
from passes.quantize import _lowering

SIMULATED_WEIGHTS = "fp4 and mxfp8 weights"
SIMULATED_ACTIVATIONS = "fp4 activations"


class Simulate(Pass):
    """Lower FP4 and TensorRT's own quantization operators to what ONNX Runtime's CPU provider runs."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Lower every such operator; what cannot be lowered is listed with its reason."""
        editor = Editor(model)
        skips: list[Skip] = []
        weights = activations = 0
        for node in [*ir.traversal.RecursiveGraphIterator(model.graph)]:
            if node.graph is None:
                continue
            if node.op_type == "TRT_FP4DynamicQuantize":
                reason = _lowering.lower_dynamic(editor, node)
                activations += reason is None
            elif _lowering.is_unsupported_weight(node):
                reason = self._fold(editor, node)
                weights += reason is None
            else:
                continue
            if reason is not None:
                skips.append(Skip(names.name_of(node), reason))
        return PassResult(
            patterns=(Pattern(SIMULATED_WEIGHTS, weights), Pattern(SIMULATED_ACTIVATIONS, activations)),
            skips=tuple(skips),
            notes=("The model is a simulation for judging accuracy; it is not smaller or faster.",)
            if weights or activations
            else (),
        )

    def _fold(self, editor: Editor, node: ir.Node) -> str | None:
        output = node.outputs[0]
        folded = _lowering.folded_weight(node)
        if isinstance(folded, str):
            return folded
        if output.is_graph_output():
            return f"its result '{output.name}' is a graph output"
        value = editor.tensor(f"{output.name}.simulated", folded)
        ir.convenience.replace_all_uses_with(output, value)
        inputs = [operand for operand in node.inputs if operand is not None]
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.remove(node, safe=True)
        drop_unused_constants(inputs)
        return None
