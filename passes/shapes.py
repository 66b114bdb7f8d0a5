"""Types and shapes by ONNX's own inference: of a model's inner values, and of what drafts make."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import _c_api_utils

from passes.cut import clone, weight
from passes.draft import Draft

LOOKED_FOR = "passes.shapes.looked_for"
"""Mark on a value whose shape inference could not find; kept in memory only."""


def infer_shapes(model: ir.Model) -> None:
    """Infer inner shapes; the graph's inputs and outputs keep theirs.

    Nothing is done where every shape is known or was looked for before: in a chain of passes most change little.
    """
    values = [output for node in model.graph for output in node.outputs]
    if all(_is_settled(value) for value in values):
        return
    _infer(model)
    for value in values:
        if not _is_settled(value):
            value.meta[LOOKED_FOR] = True


def _is_settled(value: ir.Value) -> bool:
    """Whether a value's type and all its dimensions are known, or inference has tried already."""
    if value.meta.get(LOOKED_FOR):
        return True
    return value.shape is not None and value.type is not None and not value.shape.has_unknown_dim()


def _infer(model: ir.Model) -> None:
    """Give every tensor inside the main graph the type and shape that inference finds; leave sequences alone."""

    def run(proto: onnx.ModelProto) -> onnx.ModelProto:
        return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)

    order = list(model.graph.initializers)
    try:
        # the call inside onnx_ir's own inference pass, which leaves large weights out of what it hands over;
        # the pass itself makes tensors of sequences, and reads all nodes back where only shapes are wanted
        inferred = _c_api_utils.call_onnx_api(run, model)
    except (onnx.shape_inference.InferenceError, ValueError):  # ValueError: above protobuf's 2 GiB
        return
    finally:
        for name in order:  # the large weights were taken out and put back at the end
            model.graph.initializers[name] = model.graph.initializers.pop(name)
    found = {info.name: info.type for info in inferred.graph.value_info if info.type.HasField("tensor_type")}
    for node in model.graph:
        for value in node.outputs:
            proto = found.get(str(value.name))
            if proto is not None and not value.is_graph_output():
                value.type = ir.serde.deserialize_type_proto_for_type(proto)
                value.shape = ir.serde.deserialize_type_proto_for_shape(proto) or value.shape


def infer_drafts(model: ir.Model, kinds: Sequence[Sequence[Draft]]) -> bool:
    """Infer what the new nodes of every draft give, in a model of the new nodes alone.

    Args:
        model: The model the drafts belong to, for its opsets and functions.
        kinds: Drafts in groups of alike ones; each group takes its first one's types and shapes.

    Returns:
        Whether a value that a draft replaces is known more exactly than before, so that inferring what
        follows it anew may tell more.
    """
    firsts = [kind[0] for kind in kinds if kind]
    copies = _inferred(model, firsts)
    clearer = False
    for (first, *others), nodes in zip((kind for kind in kinds if kind), copies, strict=True):
        for draft in (first, *others):
            for node, copy in zip(draft.nodes, nodes, strict=True):
                for ours, theirs in zip(node.outputs, copy.outputs, strict=True):
                    _take(ours, theirs)
            clearer |= any(_is_clearer(new, old) for old, new in draft.replacements.items())
    return clearer


def _inferred(model: ir.Model, drafts: Sequence[Draft]) -> list[tuple[ir.Node, ...]]:
    """Copies of the drafts' new nodes, with inferred outputs."""
    inputs: dict[ir.Value, ir.Value] = {}
    weights: dict[ir.Value, ir.Value] = {}
    copies = []
    for number, draft in enumerate(drafts):
        for value in draft.boundary():
            if weight(value) is None and value not in inputs:
                inputs[value] = ir.Value(name=f"in_{len(inputs)}", type=value.type, shape=value.shape)
        copies.append(clone(draft.nodes, f"d{number}", dict(inputs), weights))
    nodes = [node for group in copies for node in group]
    if nodes:
        graph = ir.Graph(
            list(inputs.values()),
            [],
            nodes=nodes,
            initializers=list(weights.values()),
            opset_imports=dict(model.opset_imports),
            name="drafts",
        )
        part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
        _infer(part)
    return copies


def _take(ours: ir.Value, theirs: ir.Value) -> None:
    """Fill in what is not known yet."""
    if ours.type is None:
        ours.type = theirs.type
    if theirs.shape is None:
        return
    if ours.shape is None:
        ours.shape = theirs.shape.copy()
    elif ours.shape.rank() == theirs.shape.rank():
        ours.shape = ir.Shape(
            [new if _is_unknown(old) else old for old, new in zip(ours.shape, theirs.shape, strict=True)]
        )


def _is_unknown(size: int | ir.SymbolicDim) -> bool:
    return not isinstance(size, int) and size.value is None


def _is_clearer(new: ir.Value, old: ir.Value) -> bool:
    """Whether `new` tells more than `old` did: its numbers, its rank or a dimension."""
    if weight(new) is not None:
        return True
    if new.shape is None:
        return False
    if old.shape is None:
        return True
    return any(_is_unknown(size) for size in old.shape) and old.shape != new.shape
