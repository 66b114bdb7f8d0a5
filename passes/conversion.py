"""What ONNX's version converter loses or gets wrong, put right.

Below opset 18 it gives a new graph without any notes (`metadata_props`), with a sub-graph's weights copied. And

- Resize and Upsample of opset 10 and before mean asymmetric coordinates, rounded down (up where they shrink); it
  leaves the defaults of opset 11, half-pixel coordinates rounded to nearest;
- the limits of Clip and the fill of Pad, once attributes, become FLOAT constants beside FLOAT16 data;
- Hardmax before opset 13 flattens what is behind its axis, and stays as it is;
- Resize of opset 10 to the nearest rounds down along axes that grow and up along those that shrink; a newer one
  rounds alike along all.

Each shows as other numbers or a model that does not load (onnx 1.21 against ONNX Runtime 1.32).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from passes import matching as m

OWN_COORDINATES = 11
"""The opset whose Resize says by attributes how it looks up."""

ONE_AXIS = 13
"""The opset whose Hardmax looks along one axis alone."""


@dataclasses.dataclass(frozen=True)
class _Graph:
    """What one graph held: notes by the name of the value they are on, or that the node gives first."""

    notes: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]
    nodes: Mapping[str, tuple[str, Mapping[str, str]]]
    weights: Mapping[str, ir.TensorProtocol | None]


NOTHING = _Graph({}, {}, {}, {})


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a conversion shall not lose.

    Attributes:
        main: The main graph as it was.
        graphs: What each held, by the first results of the nodes it lies in and the names of their attributes.
    """

    main: ir.Graph
    graphs: Mapping[tuple[str, ...], _Graph]


def refusal(model: ir.Model, before: int, least: int) -> str:
    """Why `model` would come out of the conversion with other numbers, or ""."""
    for graph in model.graphs() if before < OWN_COORDINATES <= least else ():
        for node in graph:
            if node.op_type == "Resize" and not node.domain and _rounds_both_ways(node):
                return (
                    f"Resize '{node.name}' to the nearest has scales that are computed, or above 1 along one axis "
                    "and below 1 along another, for which no newer one rounds alike"
                )
    for graph in model.graphs() if before < ONE_AXIS <= least else ():
        for node in graph:
            if node.op_type != "Hardmax" or node.domain:
                continue
            axis, rank = m.attribute(node, "axis", 1), m.rank(node.inputs[0])
            if axis != -1 and (rank is None or axis != rank - 1):
                return f"Hardmax '{node.name}' flattens the axes from {axis} on, which no newer one does"
    return ""


def _rounds_both_ways(resize: ir.Node) -> bool:
    """Whether a Resize of opset 10 to the nearest may grow along one axis and shrink along another."""
    if resize.attributes.get_string("mode", "nearest") != "nearest":
        return False
    scales = m.constant(resize.inputs[1])
    return scales is None or not (np.all(scales <= 1) or np.all(scales >= 1))


def remember(model: ir.Model) -> Kept:
    """What `restore` gives back."""
    return Kept(model.graph, {path: _graph(graph) for path, graph in _graphs(model.graph, ())})


def restore(model: ir.Model, kept: Kept, before: int) -> None:
    """Put right a model that was converted from opset `before`, in place."""
    if model.graph is kept.main:  # onnxscript's own converter, which changes nodes in place
        return
    for path, graph in _graphs(model.graph, ()):
        known = kept.graphs.get(path, NOTHING)
        graph.metadata_props.update(known.notes)
        for value in (*graph.inputs, *graph.initializers.values()):
            _restore_value(value, known)
        for name, tensor in known.weights.items():
            if name in graph.initializers:
                graph.initializers[name].const_value = tensor
        for node in graph:
            for value in node.outputs:
                _restore_value(value, known)
            op_type, notes = known.nodes.get(str(node.outputs[0].name), ("", {})) if node.outputs else ("", {})
            node.metadata_props.update(notes)
            if before < OWN_COORDINATES and node.op_type == "Resize" and op_type in ("Resize", "Upsample"):
                _look_up_as_before(node)
            elif before < OWN_COORDINATES and node.op_type in ("Clip", "Pad"):
                _retype_constants(node)


def _graphs(graph: ir.Graph, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ir.Graph]]:
    """A graph and those in its nodes, each with where it lies."""
    yield path, graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attribute.is_ref():
                single = attribute.type == ir.AttributeType.GRAPH
                inner = [attribute.as_graph()] if single else attribute.as_graphs()
                for place, each in enumerate(inner):
                    yield from _graphs(each, (*path, str(node.outputs[0].name), attribute.name, str(place)))


def _graph(graph: ir.Graph) -> _Graph:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return _Graph(
        dict(graph.metadata_props),
        {str(value.name): dict(value.metadata_props) for value in values if value.metadata_props},
        {str(node.outputs[0].name): (node.op_type, dict(node.metadata_props)) for node in graph if node.outputs},
        {name: value.const_value for name, value in graph.initializers.items()},
    )


def _restore_value(value: ir.Value, known: _Graph) -> None:
    value.metadata_props.update(known.values.get(str(value.name), {}))


def _look_up_as_before(resize: ir.Node) -> None:
    attributes = resize.attributes
    attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    if attributes.get_string("mode", "nearest") == "nearest":
        scales = m.constant(resize.inputs[2]) if len(resize.inputs) > 2 else None
        shrinks = scales is not None and bool(np.all(scales <= 1))
        attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")


def _retype_constants(node: ir.Node) -> None:
    """Give numbers that were attributes, of type FLOAT, the type of the data."""
    data = node.inputs[0]
    kind = data.dtype if data is not None else None
    if kind is None or not kind.is_floating_point():
        return
    for value in node.inputs[1:]:
        maker = m.made_by(value, "Constant")
        held = ir.convenience.get_const_tensor(value) if value is not None else None
        if value is None or maker is None or held is None or held.dtype in (kind, ir.DataType.INT64):
            continue
        with np.errstate(over="ignore"):  # FLOAT's largest number, Clip's default, is infinity in 16 bits
            maker.attributes["value"] = ir.AttrTensor("value", ir.tensor(held.numpy().astype(kind.numpy())))
        value.type = ir.TensorType(kind)
