"""Carrying out a precision plan: constants converted when written, casts where precisions meet.

Before: y: float32 = MatMul(x: float32, w: float32)
After:  y = Cast<float32>(MatMul(Cast<float16>(x), w: float16))     a cast only where float32 meets float16

Every value's type is stated, as strongly typed engines (TensorRT 11) need.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from passes.base import PassContext, PassResult, Pattern, Skip
from passes.cast._plan import Plan, Rules, is_float, plan
from passes.names import module_of
from passes.qdq import Editor, drop_unused_constants

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Counts of what was inserted."""

    casts: int
    clipped: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def cast(model: ir.Model, rules: Rules, context: PassContext) -> PassResult:
    """Plan and carry out; the graph's inputs and outputs keep their types."""
    decided = plan(model, rules, context)
    outcome = _Casting(model, rules, decided).run()
    word = rules.kind.name.lower()
    notes = list(decided.notes)
    if outcome.clipped:
        notes.append(
            f"{len(outcome.clipped)} constant(s) that stand for infinity were clipped to ±{rules.limit:.6g}: "
            f"'{outcome.clipped[0]}'."
        )
    return PassResult(
        patterns=(Pattern("node", len(decided.low)),),
        skips=tuple(Skip(node.name or node.op_type, why, module_of(node)) for node, why in decided.kept.items()),
        changed=tuple(module_of(node) or node.name or "" for node in decided.low),
        figures={
            f"nodes in {word}": len(decided.low),
            "nodes in float32": len(decided.kept),
            "casts inserted": outcome.casts,
            "weight bytes before": outcome.bytes_before,
            "weight bytes after": outcome.bytes_after,
        },
        notes=tuple(notes),
    )


class _Casting:
    def __init__(self, model: ir.Model, rules: Rules, decided: Plan) -> None:
        self.model = model
        self.rules = rules
        self.low = decided.low
        self.editor = Editor(model)
        self.casts = 0
        self.clipped: list[str] = []
        self.before = self.after = 0

    def run(self) -> Outcome:
        spent: list[ir.Value] = []
        lowered = {node.outputs[i] for node, ports in self.low.items() for i in ports.outputs}
        for node, ports in self.low.items():
            for index in ports.inputs:
                value = node.inputs[index]
                assert value is not None
                if value in lowered:
                    continue
                if ir.convenience.get_const_tensor(value) is not None and not value.is_graph_input():
                    node.replace_input_with(index, self._constant(value))
                    spent.append(value)
                else:
                    node.replace_input_with(index, self._cast(value, self.rules.kind))
            self._lower_attributes(node)
        for value in lowered:
            self._raise_for_others(value)
        drop_unused_constants(spent)
        return Outcome(self.casts, tuple(self.clipped), self.before, self.after)

    def _constant(self, value: ir.Value) -> ir.Value:
        """The constant in 16 bits, converted when it is written; shared by its readers."""
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        kind, limit = self.rules.kind, self.rules.limit

        def evaluate() -> ir.TensorProtocol:
            return ir.tensor(_converted(tensor.numpy(), kind, limit), dtype=kind)

        def make() -> ir.Value:
            self.before += tensor.nbytes
            self.after += tensor.nbytes // 2
            if tensor.size <= 64 and np.abs(tensor.numpy()).max(initial=0) > limit:
                self.clipped.append(str(value.name))
            lazy = ir.LazyTensor(evaluate, dtype=kind, shape=ir.Shape(tensor.shape.numpy()))
            return self.editor.tensor(f"{value.name}_{kind.name.lower()}", lazy)

        made: ir.Value = self.editor.shared(("constant in 16 bits", id(value)), make)
        return made

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """A Cast right behind the value, shared."""

        def make() -> ir.Value:
            node = self.editor.node(
                "Cast",
                [value],
                [f"{value.name}_{kind.name.lower()}"],
                like=value.producer(),
                attributes={"to": kind},
            )
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
            producer = value.producer()
            if producer is not None:
                self.model.graph.insert_after(producer, node)
            else:
                self.model.graph.insert_before(self.model.graph[0], node)
            self.casts += 1
            return node.outputs[0]

        made: ir.Value = self.editor.shared(("cast", id(value), kind), make)
        return made

    def _lower_attributes(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", self.rules.kind)
        elif node.op_type in ("ConstantOfShape", "Constant"):
            found = node.attributes.get("value")
            if node.op_type == "ConstantOfShape" and found is None:
                array: Array = np.zeros(1, np.float32)
            elif found is None:
                array = np.asarray(ir.convenience.get_const_tensor(node.outputs[0]).numpy())  # type: ignore[union-attr]
            else:
                array = found.as_tensor().numpy()
            converted = ir.tensor(_converted(array, self.rules.kind, self.rules.limit), dtype=self.rules.kind)
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", converted)

    def _raise_for_others(self, value: ir.Value) -> None:
        """Type a lowered value, and cast it back for readers that need float32 and for the graph's outputs."""
        others = [
            (reader, index)
            for reader, index in value.uses()
            if not (reader in self.low and index in self.low[reader].inputs)
        ]
        others = [(reader, index) for reader, index in others if not _is_fresh_cast(reader, self.rules.kind)]
        value.type = ir.TensorType(self.rules.kind)
        if value.is_graph_output():
            self._restore_output(value, others)
            return
        if not others:
            return
        raised = self._cast(value, ir.DataType.FLOAT)
        for reader, index in others:
            reader.replace_input_with(index, raised)

    def _restore_output(self, value: ir.Value, others: list[tuple[ir.Node, int]]) -> None:
        """The graph's output keeps its name and type; the 16-bit value behind it gets another name."""
        raised = self._cast(value, ir.DataType.FLOAT)
        for reader, index in others:
            reader.replace_input_with(index, raised)
        for index, output in enumerate(self.model.graph.outputs):
            if output is value:
                self.model.graph.outputs[index] = raised
        name = value.name
        value.name, raised.name = raised.name, name


def _is_fresh_cast(node: ir.Node, kind: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == kind and not is_float(node.outputs[0])


def _converted(array: Array, kind: ir.DataType, limit: float) -> Array:
    """The array in 16 bits; finite values beyond the limit are clipped to it, infinities stay."""
    values = np.asarray(array, np.float32)
    largest = float(ml_dtypes.finfo(kind.numpy()).max)
    clipped = np.where(np.isfinite(values), np.clip(values, -min(limit, largest), min(limit, largest)), values)
    result: Array = clipped.astype(kind.numpy())
    return result
