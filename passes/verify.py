"""Checking proposed rewrites: each new sub-graph against the old one it stands for, on random inputs.

What leads up to a rewrite runs once, on small inputs, to learn the shape of every value that it reads. Then
only the sub-graphs run: floats that carry activations are drawn afresh (a model with untrained weights has
nearly equal activations, which would hide a wrong scale), while integers, booleans and masks keep the
values they really had.

A rewrite in 16-bit floats may also equal the old sub-graph run one operator at a time (`passes.stepwise`): engines
keep more digits between operators than the standard says, and a fused operator may not.

Of rewrites that are alike (`passes.alike`: they can differ in the numbers of large weights only, which both
sides read) the first and the last are checked, each with its own weights; when either fails, every one is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import trial
from passes.base import PassContext
from passes.cut import Cut, ancestors, clone, weight, weight_clone
from passes.draft import Draft
from passes.stepwise import is_rounded, run_stepwise

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCES = {
    "float64": 2.0**-40,  # 53 significant bits, sums of up to a few thousand terms in another order
    "float32": 2.0**-14,  # 24 significant bits, the same: 2**10 rounding steps
    "float16": 2.0**-7,  # 11 significant bits: 2**4 rounding steps, sums are kept in 32 bits
    "bfloat16": 2.0**-4,  # 8 significant bits: 2**4 rounding steps
}
"""Largest allowed |new - old| / max |old|, per number format."""

LARGE = 1e4
"""An additive mask's values lie beyond this; activations do not."""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What the check says.

    Attributes:
        faults: Per draft, why it must be rolled back, or None.
        unchecked: Why nothing could be checked, as a sentence, or "".
    """

    faults: tuple[str | None, ...]
    unchecked: str = ""


def check(
    model: ir.Model,
    drafts: Sequence[Draft],
    cuts: Sequence[Cut],
    kinds: Sequence[Sequence[int]],
    context: PassContext,
) -> Verdicts:
    """Compare every draft's new values with the old ones; each draft stands alone.

    Args:
        model: The model the drafts belong to, still unchanged.
        drafts: The proposed rewrites.
        cuts: Per draft, where its old side is cut out.
        kinds: Groups of drafts that are alike, as positions in `drafts`.
        context: The runner, the seed, and calibration data to fall back on.
    """
    fine = Verdicts((None,) * len(drafts))
    if context.run is None:
        return dataclasses.replace(fine, unchecked="Not checked numerically: no engine to run the graph with.")
    wanted = [value for first, *_ in kinds for value in (*cuts[first].sources, *drafts[first].replacements)]
    recorded, why = _record(model, list(dict.fromkeys(wanted)), context)
    if recorded is None:
        return dataclasses.replace(fine, unchecked=f"Not checked numerically: no trial input runs ({why}).")
    for first, *others in kinds:
        for other in others:
            pairs = zip(cuts[other].sources, cuts[first].sources, strict=True)
            recorded.update({ours: recorded[theirs] for ours, theirs in pairs})
    rng = context.rng()

    def judged(members: Sequence[int]) -> dict[int, str | None]:
        cases = [_case(member, drafts[member], cuts[member], recorded, rng) for member in members]
        return dict(zip(members, _faults(model, cases, context), strict=True))

    faults = judged(list(dict.fromkeys(member for kind in kinds for member in (kind[0], kind[-1]))))
    doubtful = [kind for kind in kinds if faults[kind[0]] or faults[kind[-1]]]
    rest = [member for kind in doubtful for member in kind if member not in faults]
    if rest:
        faults.update(judged(rest))
    return Verdicts(tuple(faults.get(member) for member in range(len(drafts))))


def _faults(model: ir.Model, cases: Sequence[_Case], context: PassContext) -> list[str | None]:
    """Per case, why it must be rolled back, or None."""
    together = _judge(model, cases, context)
    if not isinstance(together, str):
        return together
    # The engine refused the batch of rewrites; running them one by one tells which of them.
    alone = [_judge(model, [case], context) for case in cases]
    return [f"the engine refuses it: {why}" if isinstance(why, str) else why[0] for why in alone]


def difference(old: Array, new: Array) -> str | None:
    """Why `new` cannot stand for `old`, in words, or None. Where `old` is NaN anything is as good."""
    if old.shape != new.shape:
        return f"shape is {list(new.shape)}, was {list(old.shape)}"
    if old.dtype != new.dtype:
        return f"type is {new.dtype}, was {old.dtype}"
    if old.dtype.name not in TOLERANCES:
        return None if np.array_equal(old, new) else "whole numbers differ"
    limit = TOLERANCES[old.dtype.name]
    left, right = old.astype(np.float64), new.astype(np.float64)
    meant = ~np.isnan(left)
    if np.isnan(right[meant]).any():
        return "gives NaN where the graph did not"
    infinite = meant & (np.isinf(left) | np.isinf(right))
    if not np.array_equal(left[infinite], right[infinite]):
        return "infinities differ"
    compared = meant & ~infinite
    if not compared.any():
        return None
    scale = float(np.abs(left[compared]).max()) or 1.0
    error = float(np.abs(left[compared] - right[compared]).max()) / scale
    return None if error <= limit else f"differs by {error:.2g} of the largest value, {limit:.2g} is allowed"


@dataclasses.dataclass(frozen=True)
class _Case:
    """One draft's two sub-graphs, cut free, and what to feed them."""

    inputs: dict[str, Array]
    old_nodes: tuple[ir.Node, ...]
    new_nodes: tuple[ir.Node, ...]
    values: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]
    old_outputs: tuple[ir.Value, ...]
    new_outputs: tuple[ir.Value, ...]
    known: dict[str, Array]


def _candidates(model: ir.Model, context: PassContext) -> Iterator[dict[str, Array]]:
    """Inputs to run the model with: made up ones, then a real batch for graphs that take no others."""
    yield from trial.feeds(model, context.rng())
    if context.calibration is not None:
        yield from (dict(batch) for batch in itertools.islice(context.calibration.feeds(), 1))


def _record(
    model: ir.Model, values: Sequence[ir.Value], context: PassContext
) -> tuple[dict[ir.Value, Array] | None, str]:
    """Run what the values come from once on trial inputs; give every wanted value and every graph input."""
    assert context.run is not None
    inner = [value for value in values if not value.is_graph_input()]
    nodes = ancestors(inner)
    part = _part(model, nodes, inner) if nodes is not None and 2 * len(nodes) < len(model.graph) else None
    why = "it has no inputs"
    for feeds in _candidates(model, context):
        try:
            found = _run(model, part, feeds, inner, context) if inner else []
        except Exception as error:  # whatever the engine behind the runner raises
            why = " ".join(str(error).split())[:200]
            continue
        recorded = dict(zip(inner, found, strict=True))
        recorded.update({value: feeds[str(value.name)] for value in model.graph.inputs if value.name in feeds})
        return recorded, ""
    return None, why


def _run(
    model: ir.Model,
    part: ir.Model | None,
    feeds: Mapping[str, Array],
    values: Sequence[ir.Value],
    context: PassContext,
) -> list[Array]:
    assert context.run is not None
    if part is None:
        found = context.run(model, feeds, [str(value.name) for value in values])
        return [found[str(value.name)] for value in values]
    taken = [str(value.name) for value in part.graph.inputs]
    found = context.run(part, {name: feeds[name] for name in taken})
    return [found[str(end.name)] for end in part.graph.outputs]


def _part(model: ir.Model, nodes: Sequence[ir.Node], values: Sequence[ir.Value]) -> ir.Model:
    """A model of the given nodes alone, whose outputs are `values`; it shares the model's weights."""
    mapping: dict[ir.Value, ir.Value] = {}
    for value in model.graph.inputs:
        if weight(value) is None:
            mapping[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
    weights: dict[ir.Value, ir.Value] = {}
    copies = list(clone(nodes, "part", mapping, weights))
    ends = []
    for number, value in enumerate(values):
        end = ir.node("Identity", [mapping[value]])
        end.outputs[0].name, end.outputs[0].type = f"part_end_{number}", value.type
        ends.append(end)
    read = {value for node in copies for value in node.inputs}
    graph = ir.Graph(
        [mapping[value] for value in model.graph.inputs if mapping.get(value) in read],
        [end.outputs[0] for end in ends],
        nodes=[*copies, *ends],
        initializers=list(weights.values()),
        opset_imports=dict(model.opset_imports),
        name="part",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _case(number: int, draft: Draft, cut: Cut, recorded: dict[ir.Value, Array], rng: np.random.Generator) -> _Case:
    """Cut the draft's old and new sub-graphs free, as clones under a prefix of their own."""
    outputs = tuple(draft.replacements)
    fresh = cut.nodes is not None
    mapping: dict[ir.Value, ir.Value] = {}
    inputs: dict[str, Array] = {}
    for index, value in enumerate(cut.sources):
        array = recorded[value]
        if fresh and value in cut.boundary and not value.is_graph_input() and _is_activation(array):
            array = np.asarray(rng.standard_normal(array.shape)).astype(array.dtype)
        copy = ir.Value(name=f"d{number}_in{index}", type=value.type, shape=ir.Shape([None] * array.ndim))
        if copy.type is None:
            copy.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        mapping[value] = copy
        inputs[str(copy.name)] = array
    weights: dict[ir.Value, ir.Value] = {}
    old_map, new_map = dict(mapping), dict(mapping)
    old_nodes = clone(cut.nodes or (), f"d{number}_old", old_map, weights)
    new_nodes = clone(draft.nodes, f"d{number}_new", new_map, weights)
    new_outputs = tuple(_mapped(new, new_map, weights, number) for new in draft.replacements.values())
    return _Case(
        inputs=inputs,
        old_nodes=old_nodes,
        new_nodes=new_nodes,
        values=tuple(mapping.values()),
        weights=tuple(weights.values()),
        old_outputs=tuple(old_map[old] for old in outputs) if fresh else (),
        new_outputs=new_outputs,
        known={} if fresh else {str(old.name): recorded[old] for old in outputs},
    )


def _mapped(
    value: ir.Value, mapping: dict[ir.Value, ir.Value], weights: dict[ir.Value, ir.Value], number: int
) -> ir.Value:
    found = mapping.get(value)
    return found if found is not None else weight_clone(value, f"d{number}_out", weights)


def _is_activation(array: Array) -> bool:
    """Whether the values may be drawn afresh: floats that are neither a mask nor a handful of settings."""
    if array.dtype.name not in TOLERANCES or array.size < 2:
        return False
    finite = array.astype(np.float64)
    return bool(np.isfinite(finite).all() and np.abs(finite).max(initial=0) < LARGE and len(np.unique(finite)) > 2)


def _judge(model: ir.Model, cases: Sequence[_Case], context: PassContext) -> list[str | None] | str:
    """Run the old and new sub-graphs of all cases, in two models, and compare; or why the engine cannot."""
    assert context.run is not None
    feeds = {name: array for case in cases for name, array in case.inputs.items()}
    before, after = _model(model, cases, old=True), _model(model, cases, old=False)
    try:
        old = context.run(before, feeds) if before.graph.outputs else {}
        new = context.run(after, feeds)
    except Exception as error:  # whatever the engine behind the runner raises
        return " ".join(str(error).split())[:300]
    faults: list[str | None] = []
    for case in cases:
        expected = [old[f"{value.name}_old"] for value in case.old_outputs] or list(case.known.values())
        found = [new[f"{value.name}_new"] for value in case.new_outputs]
        fault = _first(expected, found)
        if (
            fault is not None
            and case.old_outputs
            and is_rounded(case.inputs)
            and _stands(model, case, found, context)
        ):
            fault = None
        faults.append(fault)
    return faults


def _first(expected: Sequence[Array], found: Sequence[Array]) -> str | None:
    """The first difference between two lists of arrays, or None."""
    pairs = (difference(left, right) for left, right in zip(expected, found, strict=True))
    return next((fault for fault in pairs if fault is not None), None)


def _stands(model: ir.Model, case: _Case, found: Sequence[Array], context: PassContext) -> bool:
    """Whether the new values are what the old nodes give when each rounds its result, as the standard says.

    Together the engine may have run them with more digits, and where rounding decides both are right.
    """
    assert context.run is not None
    try:
        known = run_stepwise(case.old_nodes, case.inputs, case.weights, model, context.run)
    except Exception:  # whatever the engine behind the runner raises; the difference found before stays
        return False
    return _first([known[str(value.name)] for value in case.old_outputs], found) is None


def _model(model: ir.Model, cases: Sequence[_Case], *, old: bool) -> ir.Model:
    """One model holding one side of every case; outputs are Identities, so that an input may be an output."""
    nodes: list[ir.Node] = []
    outputs: list[ir.Value] = []
    inputs: list[ir.Value] = []
    weights: list[ir.Value] = []
    for case in cases:
        copies: dict[ir.Value, ir.Value] = {}
        for value in (*case.values, *case.weights):
            copies[value] = ir.Value(
                name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
            )
        inputs += [copies[value] for value in case.values]
        weights += [copies[value] for value in case.weights]
        nodes += _rewire(case.old_nodes if old else case.new_nodes, copies)
        for value in case.old_outputs if old else case.new_outputs:
            end = ir.node("Identity", [copies[value]])
            end.outputs[0].name = f"{value.name}_{'old' if old else 'new'}"
            end.outputs[0].type = value.type
            nodes.append(end)
            outputs.append(end.outputs[0])
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=weights,
        opset_imports=dict(model.opset_imports),
        name="check",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _rewire(nodes: Sequence[ir.Node], copies: dict[ir.Value, ir.Value]) -> list[ir.Node]:
    """Fresh copies of cloned nodes, since a value belongs to one graph only."""
    made = []
    for node in nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for ours, theirs in zip(copy.outputs, node.outputs, strict=True):
            ours.name, ours.type = theirs.name, theirs.type
            copies[theirs] = ours
        made.append(copy)
    return made
