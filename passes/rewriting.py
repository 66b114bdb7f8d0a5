"""Proposing rewrites, checking them numerically, and keeping those that hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from passes import opset, verify
from passes.alike import alike
from passes.base import PassContext, PassResult, Pattern, Skip
from passes.cut import cut
from passes.draft import Draft
from passes.names import carry_module, module_of
from passes.shapes import infer_drafts, infer_shapes


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
        self._clearer = False
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
            order = {node: place for place, node in enumerate(self.model.graph)}
            for draft in kept:
                self._insert(draft, order)
                self._found[draft.pattern] += 1
            # Layers often repeat the same small thing (a mask's spreading); one of each is enough.
            common.CommonSubexpressionEliminationPass()(self.model)
            common.RemoveUnusedNodesPass()(self.model)
            if self._clearer:
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
        cuts = [cut(draft) for draft in within]
        kinds = alike(self.model, within, cuts)
        verdicts = verify.check(self.model, within, cuts, kinds, self.context)
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
        holds = {id(draft) for draft in kept}
        self._clearer = infer_drafts(
            self.model, [[within[at] for at in kind if id(within[at]) in holds] for kind in kinds]
        )
        return kept

    def _insert(self, draft: Draft, order: Mapping[ir.Node, int]) -> None:
        graph = self.model.graph
        for value in draft.constants:
            if graph.initializers.get(str(value.name)) is value:
                continue
            stem, number = str(value.name), 0
            while value.name in graph.initializers:
                number += 1
                value.name = f"{stem}_{number}"
            graph.initializers[str(value.name)] = value
        producers = [node for old in draft.replacements if (node := old.producer()) is not None]
        first = min(producers, key=lambda node: order[node])
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
