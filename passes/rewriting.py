"""Proposing rewrites, checking them numerically, and keeping those that hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from passes import opset, verify
from passes.base import PassContext, PassResult, Pattern, Skip
from passes.names import carry_module, module_of

MAY_GIVE_SEQUENCES = frozenset(
    (
        "Identity", "If", "Loop", "Optional", "OptionalGetElement", "Scan", "SequenceConstruct", "SequenceEmpty",
        "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence",
    )
)  # fmt: skip
"""Operators whose outputs may be sequences or optionals."""

LOOKED_FOR = "passes.rewriting.looked_for"
"""Mark on a value whose shape inference could not find; kept in memory only."""


@dataclasses.dataclass
class Draft:
    """One proposed rewrite: nodes not yet in the graph, and which old values they stand for.

    Attributes:
        pattern: The pattern's name.
        anchor: The old node that names the place (the softmax of an attention).
        nodes: New nodes, in running order.
        constants: New initializers.
        replacements: Old value → new value.
        least_opset: The standard opset that the new nodes need.
    """

    pattern: str
    anchor: ir.Node
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    constants: list[ir.Value] = dataclasses.field(default_factory=list)
    replacements: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    least_opset: int = 1
    shared: dict[tuple[str, str, tuple[int, ...], bytes], ir.Value] = dataclasses.field(default_factory=dict)

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and give that output."""
        return self.ops(op_type, inputs, 1, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs and give them."""
        node = ir.node(
            op_type,
            list(inputs),
            attributes={key: value for key, value in attributes.items() if value is not None},
            domain=domain,
            num_outputs=outputs,
        )
        self.nodes.append(node)
        return node.outputs

    def constant(self, array: np.ndarray[Any, Any] | np.generic, name: str) -> ir.Value:
        """Add an initializer; drafts share equal small ones. Its name is made unique when it is kept."""
        array = np.asarray(array)
        key = (name, array.dtype.str, array.shape, array.tobytes() if array.size <= 64 else b"")
        if array.size <= 64 and key in self.shared:
            value = self.shared[key]
            if value not in self.constants:
                self.constants.append(value)
            return value
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.constants.append(value)
        if array.size <= 64:
            self.shared[key] = value
        return value

    def drop(self, value: ir.Value) -> None:
        """Take back a node made for this draft, by its output."""
        node = value.producer()
        if node is not None and node in self.nodes:
            self.nodes.remove(node)
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Say that `new` stands for `old`, with its type and shape."""
        if new.producer() in self.nodes:
            new.type, new.shape = old.type, old.shape
        self.replacements[old] = new

    def boundary(self) -> tuple[ir.Value, ...]:
        """Values of the old graph that the new nodes read."""
        own = {output for node in self.nodes for output in node.outputs} | set(self.constants)
        read = [value for node in self.nodes for value in node.inputs if value is not None]
        read += [value for value in self.replacements.values() if value not in own]
        return tuple(dict.fromkeys(value for value in read if value not in own))

    def withdraw(self) -> None:
        """Take the new nodes' hands off the old graph's values."""
        for node in self.nodes:
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)


class Rewriting:
    """The work of one fusion pass on a model's main graph.

    Sub-graphs (If, Loop, Scan) and functions are left alone; what they read of the main graph is kept.
    """

    def __init__(self, model: ir.Model, context: PassContext, *patterns: str) -> None:
        """Prepare `model`: shapes are inferred, its inputs and outputs stay as they are."""
        self.model = model
        self.context = context
        self._drafts: list[Draft] = []
        self._found = dict.fromkeys(patterns, 0)
        self._misses: dict[str, list[Skip]] = {pattern: [] for pattern in patterns}
        self._notes: list[str] = []
        self._changed: list[str] = []
        self._taken: set[ir.Value] = set()
        self._shared: dict[tuple[str, str, tuple[int, ...], bytes], ir.Value] = {}
        infer_shapes(model)

    def nodes(self, *op_types: str) -> list[ir.Node]:
        """Standard nodes of the main graph with one of the given operators, in order."""
        return [node for node in self.model.graph if node.op_type in op_types and node.domain in ("", "ai.onnx")]

    def draft(self, pattern: str, anchor: ir.Node, least_opset: int = 1) -> Draft:
        """A new, empty proposal; it counts once `propose` is called with it."""
        return Draft(pattern, anchor, least_opset=least_opset, shared=self._shared)

    def propose(self, draft: Draft) -> None:
        """Hand in a finished draft; one that would replace a value twice is withdrawn."""
        if self._taken & set(draft.replacements):
            draft.withdraw()
            return
        self._taken |= set(draft.replacements)
        self._drafts.append(draft)

    def miss(self, pattern: str, node: ir.Node, reason: str) -> None:
        """Note a near miss."""
        self._misses[pattern].append(Skip(str(node.name), reason, module_of(node)))

    def note(self, sentence: str) -> None:
        """Add a sentence for the reader, once."""
        if sentence not in self._notes:
            self._notes.append(sentence)

    def least_opset(self) -> int:
        """The opset that the drafts within the target's reach need."""
        reach = self.context.target.opset
        return max((draft.least_opset for draft in self._drafts if draft.least_opset <= reach), default=1)

    def withdraw(self) -> None:
        """Forget every draft."""
        for draft in self._drafts:
            draft.withdraw()
        self._drafts.clear()

    def finish(self) -> PassResult:
        """Check the drafts, keep those that hold, drop what nothing reads any more."""
        kept = self._check()
        if kept:
            before = len(self.model.graph)
            for draft in kept:
                self._insert(draft)
                self._found[draft.pattern] += 1
            # Layers often repeat the same small thing (a mask's spreading); one of each is enough.
            common.CommonSubexpressionEliminationPass()(self.model)
            common.RemoveUnusedNodesPass()(self.model)
            infer_shapes(self.model)
            figures: dict[str, float | int | str] = {
                "nodes before": before,
                "nodes after": len(self.model.graph),
            }
        else:
            figures = {}
        return PassResult(
            patterns=tuple(Pattern(name, found, tuple(self._misses[name])) for name, found in self._found.items()),
            changed=tuple(self._changed),
            figures=figures,
            notes=tuple(self._notes),
        )

    def _check(self) -> list[Draft]:
        """Withdraw what the target cannot read and what fails its numerical check."""
        within = []
        for draft in self._drafts:
            if draft.least_opset > self.context.target.opset:
                self.miss(
                    draft.pattern,
                    draft.anchor,
                    f"needs opset {draft.least_opset}, {self.context.target.title} reads up to "
                    f"{self.context.target.opset}",
                )
                draft.withdraw()
            else:
                within.append(draft)
        if not within:
            return []
        for draft in within:
            for node in draft.nodes:
                if node.domain not in self.model.opset_imports:
                    self.model.opset_imports[node.domain] = 1
        verdicts = verify.check(self.model, within, self.context)
        kept = []
        for draft, verdict in zip(within, verdicts.faults, strict=True):
            if verdict is None:
                kept.append(draft)
                continue
            self.miss(draft.pattern, draft.anchor, verdict)
            self.note(f"{draft.pattern} at '{draft.anchor.name}' was rolled back: {verdict}.")
            draft.withdraw()
        if verdicts.unchecked:
            self.note(verdicts.unchecked)
        return kept

    def _insert(self, draft: Draft) -> None:
        graph = self.model.graph
        for value in draft.constants:
            if graph.initializers.get(str(value.name)) is value:
                continue
            stem, number = str(value.name), 0
            while value.name in graph.initializers:
                number += 1
                value.name = f"{stem}_{number}"
            graph.initializers[str(value.name)] = value
        producers = {old.producer() for old in draft.replacements}
        first = next(node for node in graph if node in producers) if len(producers) > 1 else producers.pop()
        assert first is not None
        graph.insert_before(first, draft.nodes)
        carry_module(draft.anchor, *draft.nodes)
        for old, new in draft.replacements.items():
            fresh = new.producer() in draft.nodes
            if old.is_graph_output() and not fresh:
                # A graph output keeps its own name even when another value stands for it.
                identity = ir.node("Identity", [new])
                graph.insert_before(first, identity)
                new, fresh = identity.outputs[0], True
                new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            if fresh:
                name = old.name
                old.name = f"{name}_before_{draft.pattern}"
                new.name = name
        self._changed.append(str(draft.anchor.name))


def rewrite(
    model: ir.Model, context: PassContext, patterns: Sequence[str], match: Callable[[Rewriting], None]
) -> PassResult:
    """Run `match`, which proposes drafts, and keep those that hold.

    Where drafts need a newer opset the model is converted and matched again, since conversion may replace
    values.
    """
    rewriting = Rewriting(model, context, *patterns)
    match(rewriting)
    least = rewriting.least_opset()
    if opset.current(model) < least:
        rewriting.withdraw()
        opset.lift(model, least)
        rewriting = Rewriting(model, context, *patterns)
        match(rewriting)
    return rewriting.finish()


def merged(rounds: Sequence[PassResult]) -> PassResult:
    """One result for several rounds of the same rewriting: counts add up, near misses are the last round's."""
    counted = [result.figures for result in rounds if result.figures]
    figures: dict[str, float | int | str] = {}
    if counted:
        figures = {**counted[-1], "nodes before": counted[0]["nodes before"]}
    return PassResult(
        patterns=tuple(
            Pattern(
                pattern.name,
                sum(result.patterns[index].found for result in rounds),
                rounds[-1].patterns[index].near_misses,
            )
            for index, pattern in enumerate(rounds[-1].patterns)
        ),
        changed=tuple(name for result in rounds for name in result.changed),
        figures=figures,
        notes=tuple(dict.fromkeys(note for result in rounds for note in result.notes)),
    )


def infer_shapes(model: ir.Model) -> None:
    """Infer inner shapes with ONNX's own inference; the graph's inputs and outputs keep theirs.

    Nothing is done where every shape is known or was looked for before: in a chain of passes most change little.
    """
    values = [output for node in model.graph for output in node.outputs]
    if all(_is_settled(value) for value in values):
        return
    ends = [*model.graph.inputs, *model.graph.outputs]
    inner = [
        value
        for graph in model.graphs()
        if graph is not model.graph
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs))
    ]
    # onnx_ir takes a sequence's element type for the value's own; what may be a sequence keeps its type.
    sequences = [output for node in model.graph if node.op_type in MAY_GIVE_SEQUENCES for output in node.outputs]
    declared = [(value, value.type, value.shape) for value in (*ends, *inner, *sequences)]
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, kind, shape in declared:
        value.type, value.shape = kind, shape
    for value in values:
        if not _is_settled(value):
            value.meta[LOOKED_FOR] = True


def _is_settled(value: ir.Value) -> bool:
    """Whether a value's type and all its dimensions are known, or inference has tried already."""
    if value.meta.get(LOOKED_FOR):
        return True
    return value.shape is not None and value.type is not None and not value.shape.has_unknown_dim()
