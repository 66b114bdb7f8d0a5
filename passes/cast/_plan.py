"""Deciding, node by node, what may run in 16 bits, and saying why the rest may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from passes import names
from passes.base import PassContext
from passes.calibration import Method, collect
from passes.numerics import INT8

GENERATORS = ("Cast", "ConstantOfShape", "Constant")
"""Operators whose float output follows an attribute, not an input."""

MASK = 1e30
"""A constant beyond this stands for infinity (a mask's fill); it may be clipped to the format's range."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the cast asks of a node.

    Attributes:
        kind: FLOAT16 or BFLOAT16.
        skip: Patterns of nodes the user wants in float32.
        keep_ops: Operators that stay in float32 because their sums or powers lose too much.
        limit: Largest magnitude allowed in 16 bits.
    """

    kind: ir.DataType
    skip: tuple[str, ...]
    keep_ops: tuple[str, ...]
    limit: float


@dataclasses.dataclass(frozen=True)
class Ports:
    """Which inputs and outputs of a node change type when it runs in 16 bits."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decision.

    Attributes:
        low: Nodes that run in 16 bits, with the ports that change.
        kept: Nodes that carry float32 and keep it, with the reason.
        notes: Sentences for the reader.
    """

    low: Mapping[ir.Node, Ports]
    kept: Mapping[ir.Node, str]
    notes: tuple[str, ...]


def plan(model: ir.Model, rules: Rules, context: PassContext) -> Plan:
    """Look at every node of the main graph that carries float32."""
    opset = int(model.opset_imports.get("", 0))
    low: dict[ir.Node, Ports] = {}
    kept: dict[ir.Node, str] = {}
    for node in model.graph:
        if not _carries_float(node):
            continue
        if _is_boundary(node):
            continue
        found = _ports(node, opset, rules)
        if isinstance(found, str):
            kept[node] = found
        elif found.inputs or found.outputs:
            low[node] = found
    notes = _apply_ranges(model, low, kept, rules, context)
    _spare_generators(low)
    return Plan(low, kept, notes)


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def _carries_float(node: ir.Node) -> bool:
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def _is_boundary(node: ir.Node) -> bool:
    """A Cast between floating-point types is where precision already changes on purpose."""
    source = node.inputs[0] if node.inputs else None
    return (
        node.op_type == "Cast"
        and source is not None
        and source.dtype is not None
        and source.dtype.is_floating_point()
    )


def _ports(node: ir.Node, opset: int, rules: Rules) -> Ports | str:
    """The ports that change, or why the node keeps float32."""
    if names.matches(node, rules.skip):
        return "listed under skip"
    if node.op_type in rules.keep_ops and node.domain in ("", "ai.onnx"):
        return f"{node.op_type} stays in float32 (keep_ops): long sums, powers and exponentials lose too much"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        return f"{node.op_type} holds a sub-graph"
    if any(value is not None and value.dtype is None for value in (*node.inputs, *node.outputs)):
        return "the type of one of its values is unknown; run clean.shapes first"
    if node.op_type in GENERATORS and node.domain in ("", "ai.onnx"):
        return Ports((), (0,))
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
    except onnx.defs.SchemaError:
        return f"nothing is known of the types of {node.domain or 'ai.onnx'}.{node.op_type}"
    wanted = f"tensor({rules.kind.name.lower()})"
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in schema.type_constraints}
    ins = _typed_ports(node.inputs, schema.inputs, allowed, wanted)
    outs = _typed_ports(node.outputs, schema.outputs, allowed, wanted)
    # Inputs and outputs of one type variable go together; "no" for one is "no" for all.
    for ports, formal, values in ((ins, schema.inputs, node.inputs), (outs, schema.outputs, node.outputs)):
        for index, value in enumerate(values):
            variable = formal[min(index, len(formal) - 1)].type_str
            if is_float(value) and index not in ports and variable in allowed and variable == "T":
                return f"{node.op_type} has no {rules.kind.name.lower()} form in opset {opset}"
    reason = _constants_lose(node, ins, rules)
    return reason or Ports(ins, outs)


def _typed_ports(
    values: Sequence[ir.Value | None], formal: Sequence[onnx.defs.OpSchema.FormalParameter],
    allowed: Mapping[str, set[str]], wanted: str,
) -> tuple[int, ...]:  # fmt: skip
    return tuple(
        index
        for index, value in enumerate(values)
        if is_float(value) and formal and wanted in allowed.get(formal[min(index, len(formal) - 1)].type_str, ())
    )


def _constants_lose(node: ir.Node, ports: tuple[int, ...], rules: Rules) -> str:
    """Why a constant operand must not be rounded to 16 bits, or ""."""
    kind = rules.kind.numpy()
    for index in ports:
        value = node.inputs[index]
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if value is None or tensor is None or value.is_graph_input():
            continue
        array = tensor.numpy()
        finite = array[np.isfinite(array)]
        largest = float(np.abs(finite).max(initial=0.0))
        if rules.limit < largest < MASK:
            return f"constant '{value.name}' reaches {largest:.4g}, beyond {rules.limit:.4g}"
        if array.size == 1 and 0 < largest < 1 and not array.astype(kind).astype(np.float32).any():
            return (
                f"constant '{value.name}' is {float(array.reshape(-1)[0]):.4g}, which {rules.kind.name} rounds to 0"
            )
        if isinstance(tensor, ir.ExternalTensor):
            del array, finite
            tensor.release()
    return ""


def _apply_ranges(
    model: ir.Model, low: dict[ir.Node, Ports], kept: dict[ir.Node, str], rules: Rules, context: PassContext
) -> tuple[str, ...]:
    """Keep nodes in float32 whose values leave the 16-bit range on the calibration data."""
    if rules.limit >= float(ml_dtypes.finfo(ml_dtypes.bfloat16).max) / 2:
        return ()
    if context.calibration is None:
        return (
            "Ranges were not checked: there is no calibration data. A value beyond the range becomes infinite.",
        )
    watched = dict.fromkeys(
        str(value.name)
        for node, ports in low.items()
        for value in (*(node.inputs[i] for i in ports.inputs), *(node.outputs[i] for i in ports.outputs))
        if value is not None and ir.convenience.get_const_tensor(value) is None
    )
    if not watched:
        return ()
    ranges = collect(model, list(watched), context, Method("minmax"), INT8, symmetric=True)
    beyond = {name: found.amax for name, found in ranges.of.items() if rules.limit < found.amax < MASK}
    for node, ports in list(low.items()):
        values = [node.inputs[i] for i in ports.inputs] + [node.outputs[i] for i in ports.outputs]
        for value in values:
            if value is not None and value.name in beyond:
                reach = f"'{value.name}' reaches {beyond[value.name]:.4g} on the calibration data"
                kept[node] = f"{reach}, beyond {rules.limit:.4g}"
                low.pop(node, None)
                break
    return ()


def _spare_generators(low: dict[ir.Node, Ports]) -> None:
    """A Cast or ConstantOfShape that only float32 nodes read stays float32: two casts less."""
    for node in [item for item in low if item.op_type in GENERATORS]:
        readers = node.outputs[0].consumers()
        if (readers and all(reader not in low for reader in readers)) or node.outputs[0].is_graph_output():
            low.pop(node)
