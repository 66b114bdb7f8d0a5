"""Taking over a model that another tool quantized: what it did is listed, what it lost is put back, faults refused.

The tool gives no account of its own: a node counts as quantized when it reads a `DequantizeLinear`. Notes on nodes
(source modules) and named dimensions, which a round trip through other libraries drops, come from the model before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from passes import layers as weighted
from passes.base import PassContext, PassFailed, Skip
from passes.names import carry_module

Array = np.ndarray[Any, np.dtype[Any]]

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
CARRIERS = ("Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze")
"""Nodes that may stand between a DequantizeLinear and its reader."""

PROTOBUF_BYTES = 2_000_000_000


@dataclasses.dataclass(frozen=True)
class Sites:
    """Where a model is quantized.

    Attributes:
        layers: Layers with stored weights that read a quantized one, as reports call them.
        others: Other nodes that read a quantized value.
        skips: Layers left in floating point, with the reason.
    """

    layers: tuple[str, ...]
    others: tuple[str, ...]
    skips: tuple[Skip, ...]


def is_quantized(model: ir.Model) -> bool:
    """Whether the model holds quantizers already."""
    return any(node.op_type in QUANTIZERS for graph in model.graphs() for node in graph)


def restore_notes(made: ir.Model, before: ir.Model) -> None:
    """Give nodes of `made` the notes that nodes of the same name had; quantizers get their reader's."""
    known = {node.name: node for graph in before.graphs() for node in graph}
    for graph in made.graphs():
        nodes = list(graph)
        for node in nodes:
            source = known.get(node.name)
            if source is not None and source.op_type == node.op_type:
                carry_module(source, node)
        for node in reversed(nodes):
            if node.op_type not in (*QUANTIZERS, *CARRIERS) or node.metadata_props:
                continue
            reader = next((use.node for output in node.outputs for use in output.uses()), None)
            if reader is not None:
                carry_module(reader, node)


def sites(made: ir.Model, before: ir.Model, ops: Iterable[str], reasons: Mapping[str, str]) -> Sites:
    """Compare a quantized model with what it came from.

    Args:
        made: The quantized model.
        before: The model before.
        ops: Operator types whose layers are accounted for one by one.
        reasons: Node name → why it was to be left out.
    """
    quantized = {node.name: node for graph in made.graphs() for node in graph if _reads_quantized(node)}
    found, without = weighted.find(before, ops)
    names = {layer.node.name for layer in found}
    silent = "ModelOpt left it in floating point and does not say why"
    skips = [
        weighted.skip(layer.node, reasons.get(str(layer.node.name), silent))
        for layer in found
        if layer.node.name not in quantized
    ]
    skips += [item for item in without if item.node not in quantized]
    return Sites(
        layers=tuple(layer.name for layer in found if layer.node.name in quantized),
        others=tuple(str(name) for name in quantized if name not in names),
        skips=tuple(skips),
    )


def _reads_quantized(node: ir.Node) -> bool:
    if node.op_type in (*QUANTIZERS, *CARRIERS):
        return False
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        while producer is not None and producer.op_type in CARRIERS and producer.inputs[0] is not None:
            producer = producer.inputs[0].producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return True
    return False


def refuse_broken(made: ir.Model, before: ir.Model, context: PassContext) -> float | None:
    """Check the interface, the ONNX rules, and outputs on one calibration batch.

    Returns:
        ‖made − before‖ / ‖before‖ over all outputs, or None when nothing could be run.

    Raises:
        PassFailed: When the model cannot be used.
    """
    for kind in ("inputs", "outputs"):
        old, new = (_interface(getattr(model.graph, kind)) for model in (before, made))
        if old != new:
            raise PassFailed(f"modelopt: ModelOpt changed the model's {kind}: {old} became {new}.")
    held = [value.const_value for value in made.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in held if tensor is not None) < PROTOBUF_BYTES:
        try:
            onnx.checker.check_model(ir.to_proto(made))
        except onnx.checker.ValidationError as error:
            raise PassFailed(f"modelopt: ModelOpt wrote an invalid model: {_short(error)}.") from error
    feeds = next(iter(context.calibration.feeds()), None) if context.calibration is not None else None
    if context.run is None or feeds is None:
        return None
    expected = context.run(before, feeds)
    try:
        got = context.run(made, feeds)
    except Exception as error:  # whatever the engine behind the runner raises
        raise PassFailed(f"modelopt: no engine runs the model that ModelOpt wrote: {_short(error)}.") from error
    return _difference(expected, got)


def _difference(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    lost = whole = 0.0
    for name, old in expected.items():
        new = got[name]
        if new.shape != old.shape:
            raise PassFailed(
                f"modelopt: ModelOpt's model gives '{name}' the shape {list(new.shape)}, was {list(old.shape)}."
            )
        left, right = old.astype(np.float64), new.astype(np.float64)
        meant = np.isfinite(left)
        if not np.isfinite(right[meant]).all():
            raise PassFailed(f"modelopt: ModelOpt's model gives NaN or infinity in output '{name}'.")
        lost += float(np.square(right[meant] - left[meant]).sum())
        whole += float(np.square(left[meant]).sum())
    return float((lost / max(whole, 1e-30)) ** 0.5)


def adopt(model: ir.Model, made: ir.Model) -> None:
    """Put `made`'s graph into `model`, with the names of dimensions that `model` had."""
    for old, new in zip(
        (*model.graph.inputs, *model.graph.outputs), (*made.graph.inputs, *made.graph.outputs), strict=True
    ):
        new.shape = old.shape
        new.metadata_props.update(old.metadata_props)
    made.graph.name = model.graph.name
    made.graph.metadata_props.update(model.graph.metadata_props)
    model.graph = made.graph
    model.ir_version = max(model.ir_version, made.ir_version)


def _interface(values: Iterable[ir.Value]) -> list[tuple[str, str]]:
    return [(str(value.name), str(value.dtype)) for value in values]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
