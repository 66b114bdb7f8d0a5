"""Auto: quantize as many layers as an accuracy budget allows, and none when it does not pay.

Before: y = MatMul(MatMul(x, a), b)
After:  the layers that can take it in the first of `formats`, the next ones in the second, the rest as they were

1. Every layer's own error in each format is measured in one run over the calibration data.
2. A bisection over that ranking finds the worst layers that must stay out; then layers are put back while the
   budget holds. Candidates are fitted to three quarters of the calibration data and scored on the rest; what is
   chosen is fitted to all of it. Every scored candidate counts as one evaluation and appears in the result.
3. The result is timed against the model as it came: when it is not faster by `min_gain`, nothing is changed.

Leaves alone: layers that cost more accuracy than the budget has, each named with its error and as a recipe line.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import onnx_ir as ir
import pydantic

from passes import layers as weighted
from passes import names, registry
from passes.base import Judge, Pass, PassContext, PassFailed, PassResult, Pattern, Skip
from passes.layers import Layer
from passes.quantize._held_out import WithoutLast
from passes.quantize._search import Allowance, Trial, search
from passes.quantize._sensitivity import Sensitivity, measure
from passes.target import Target

FORMATS = ("int8", "fp8", "fp4", "int4")
BUDGETS = {"cosine": 0.995, "sqnr_db": 20.0, "relative_l2": 0.1}
"""Where none is given; all three allow about the same error."""
OPS = ("MatMul", "Gemm", "Conv")
REACHED = ("Add", "ConvTranspose", "Softmax", *OPS)
"""What a format's `skip` has a say in: layers, what is added to a layer's result, attention."""


class QuantizeAuto(Pass):
    """Search for the fastest mixture of formats that meets an accuracy budget."""

    version: ClassVar[int] = 3

    needs_calibration = True

    formats: tuple[Literal["int8", "fp8", "fp4", "int4"], ...] = pydantic.Field(
        default=("int8",), min_length=1, description="Formats to try, the most wanted first."
    )
    options: dict[str, dict[str, Any]] = pydantic.Field(
        default_factory=dict,
        description="Options per format, as its own pass takes them: {int8: {activations: static}}.",
    )
    metric: Literal["cosine", "sqnr_db", "relative_l2"] = pydantic.Field(
        default="cosine", description="What the budget is about, measured on the calibration data."
    )
    budget: float | None = pydantic.Field(
        default=None,
        allow_inf_nan=False,
        description="Worst value of the metric that is accepted (for relative_l2 the largest). Unset: cosine "
        "0.995, sqnr_db 20, relative_l2 0.1.",
    )
    evaluations: int = pydantic.Field(default=24, ge=1, description="Most candidates that are scored.")
    minutes: float = pydantic.Field(default=30.0, gt=0, description="Most minutes that the search takes.")
    min_gain: float = pydantic.Field(
        default=1.02, ge=1, description="Least speedup, measured, for which quantizing is worth it."
    )

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = [name for name, count in Counter(self.formats).items() if count > 1]
        if twice:
            raise ValueError(f"formats names {', '.join(twice)} more than once")
        unused = [name for name in self.options if name not in self.formats]
        if unused:
            raise ValueError(f"options is for {', '.join(unused)}, and formats has {', '.join(self.formats)} alone")
        if self.metric == "cosine" and not 0 < self.least <= 1:
            raise ValueError(f"budget is {self.least:g}, and a cosine to be reached lies above 0 and up to 1")
        if self.metric == "relative_l2" and self.least <= 0:
            raise ValueError(f"budget is {self.least:g}, and the largest relative_l2 accepted lies above 0")
        return self

    @property
    def least(self) -> float:
        """The budget, given or not."""
        return BUDGETS[self.metric] if self.budget is None else self.budget

    def patterns_to_skip(self) -> tuple[str, ...]:
        """What the formats' options leave alone."""
        return tuple(pattern for given in self.options.values() for pattern in given.get("skip", ()))

    def check(self, target: Target) -> str | None:
        """Every format's own check with its options."""
        for name in self.formats:
            try:
                reason = self._pass(name, ()).check(target)
            except (pydantic.ValidationError, registry.UnknownPass) as error:
                return f"format {name} cannot be set up with its options: {error}"
            if reason:
                return f"{name}: {reason}"
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Search, then quantize the model with what was found.

        Raises:
            PassFailed: Without calibration data or a judge, or when a format's pass fails.
        """
        if context.judge is None:
            raise PassFailed("auto: candidates must be scored, and nothing here can. Run it in a pipeline.")
        named = _named_layers(model)
        if not named:
            return PassResult(patterns=(Pattern("layer", 0),), notes=("No layer with stored weights to quantize.",))
        started = time.monotonic()
        allowance = Allowance(self.evaluations, started + 60 * self.minutes)
        fitted = context
        if context.calibration is not None and context.judge.held_out:
            fitted = dataclasses.replace(
                context, calibration=WithoutLast(context.calibration, context.judge.held_out)
            )
        assigned: dict[str, str] = {}
        steps: list[_Step] = []
        for name in self.formats:
            open_layers = [layer for layer in named if layer not in assigned]
            if not open_layers:
                break
            step = self._try_format(model, name, named, assigned, open_layers, fitted, context.judge, allowance)
            steps.append(step)
            assigned.update(dict.fromkeys(step.taken, name))
        return self._conclude(model, named, assigned, steps, context, context.judge, started)

    def _try_format(
        self, model: ir.Model, name: str, named: Mapping[str, Layer], assigned: Mapping[str, str],
        open_layers: list[str], context: PassContext, judge: Judge, allowance: Allowance,
    ) -> _Step:  # fmt: skip
        """Decide which of the open layers take one format, beside what is assigned already."""
        originals = tuple(map(names.by_output, named))
        measured = dict(measure(model, open_layers, name, self._pass(name, originals), context))
        for layer in open_layers:
            if names.matches(named[layer].node, self.options.get(name, {}).get("skip", ())):
                measured[layer] = dataclasses.replace(measured[layer], reason="listed under skip")
        together = _together(named, name)
        for layer in open_layers:
            stays = [each for each in together[layer] if each not in measured or measured[each].reason]
            if stays and not measured[layer].reason:
                reason = f"shares its weight with '{named[stays[0]].name or stays[0]}', which does not take {name}"
                measured[layer] = dataclasses.replace(measured[layer], reason=reason)
        able = [layer for layer in open_layers if not measured[layer].reason]
        first = [layer for layer in able if together[layer][0] == layer]
        cost = {layer: float(_elements(named[layer])) for layer in first}

        def all_of(layers: frozenset[str]) -> frozenset[str]:
            return frozenset(each for layer in layers for each in together[layer])

        def score(left_out: frozenset[str]) -> float:
            trial = {**assigned, **dict.fromkeys(set(able) - all_of(left_out), name)}
            candidate = model.clone()
            self._quantize(candidate, named, trial, context)
            reached = judge.accuracy(candidate)[self.metric]
            context.progress("search", self.evaluations - allowance.evaluations, self.evaluations)
            return -reached if self.metric == "relative_l2" else reached

        if not able:
            return _Step(name, measured, (), (), 0)
        least = -self.least if self.metric == "relative_l2" else self.least
        errors = {layer: max(measured[each].error for each in together[layer]) for layer in first}
        left_out, found = search(first, errors, cost, score, least, allowance)
        trials = tuple(dataclasses.replace(trial, left_out=all_of(trial.left_out)) for trial in found)
        taken = () if left_out is None else tuple(layer for layer in able if layer not in all_of(left_out))
        return _Step(name, measured, trials, taken, len(able))

    def _quantize(
        self, model: ir.Model, named: Mapping[str, Layer], assigned: Mapping[str, str], context: PassContext
    ) -> list[PassResult]:
        """Run each format's pass on exactly its layers."""
        results = []
        for name in self.formats:
            others = tuple(names.by_output(layer) for layer in named if assigned.get(layer) != name)
            if len(others) < len(named):
                results.append(self._pass(name, others).apply(model, context))
        return results

    def _pass(self, name: str, skip: tuple[str, ...]) -> Pass:
        given = dict(self.options.get(name, {}))
        given["skip"] = (*given.get("skip", ()), *skip)
        return registry.find(f"quantize.{name}").model_validate(given)

    def _conclude(
        self, model: ir.Model, named: Mapping[str, Layer], assigned: dict[str, str], steps: list[_Step],
        context: PassContext, judge: Judge, started: float,
    ) -> PassResult:  # fmt: skip
        notes = [sentence for step in steps for sentence in step.sentences(self.metric, len(named))]
        skips = [
            Skip(named[layer].node.name or layer, self._why_left_out(layer, steps), named[layer].name)
            for layer in named
            if layer not in assigned
        ]
        figures: dict[str, float | int | str] = {
            "evaluations": sum(len(step.trials) for step in steps),
            "evaluations allowed": self.evaluations,
            "minutes": round((time.monotonic() - started) / 60, 2),
            "minutes allowed": self.minutes,
        }
        if not assigned:
            notes.append(f"Nothing is quantized: {self._why_nothing(steps)}.")
            return PassResult((Pattern("layer", 0),), tuple(skips), figures=figures, notes=tuple(notes))
        lines = self._recipe(model, named, assigned)
        candidate = model.clone()
        self._quantize(candidate, named, assigned, context)
        before, after = _in_turns(judge, model, candidate)
        figures |= {"latency ms before": before, "latency ms after": after}
        if after * self.min_gain > before:
            notes.append(
                f"Not worth quantizing: {after:.3g} ms against {before:.3g} ms as it came, a gain of "
                f"{before / after:.2f} where {self.min_gain:.2f} is asked for. The model is unchanged."
            )
            return PassResult((Pattern("layer", 0),), tuple(skips), figures=figures, notes=tuple(notes))
        labels = tuple(named[layer].name for layer in named if layer in assigned)
        results = self._quantize(model, named, assigned, context)
        notes += [note for result in results for note in result.notes]
        notes.append(
            f"{self.metric} {self.least:g} holds on {_where(judge)}, which the search looked at many times; "
            "the report's accuracy, on other data, may be a little worse. A gate on it decides."
        )
        notes.append("The same without a search:\n" + lines)
        return PassResult(
            patterns=(Pattern("layer", len(assigned)),),
            skips=tuple(skips),
            changed=labels,
            figures={
                **figures,
                **{f"layers in {name}": count for name, count in Counter(assigned.values()).items()},
            },
            notes=tuple(notes),
        )

    def _why_left_out(self, layer: str, steps: list[_Step]) -> str:
        reasons = []
        for step in steps:
            found = step.measured.get(layer)
            if found is None:
                continue
            errs = f"its output errs by {found.error**0.5:.2%}, too much for {self.metric} {self.least:g}"
            untried = "no candidate was scored in the time allowed"
            reasons.append(f"{step.name}: {found.reason or (errs if step.trials else untried)}")
        return "; ".join(reasons)

    def _why_nothing(self, steps: list[_Step]) -> str:
        if not any(step.able for step in steps):
            return f"no layer can take {' or '.join(self.formats)}, each for the reason beside it"
        scored = sum(len(step.trials) for step in steps)
        allowed = f"{self.evaluations} evaluations and {self.minutes:g} minutes are allowed"
        if not scored:
            return f"no candidate was scored in the time allowed ({allowed})"
        what = "the one candidate scored misses" if scored == 1 else f"all {scored} candidates scored miss"
        return f"{what} the budget of {self.metric} {self.least:g} ({allowed})"

    def _recipe(self, model: ir.Model, named: Mapping[str, Layer], assigned: Mapping[str, str]) -> str:
        """The outcome as recipe lines; what they skip is skipped alone, skip connections included."""
        lines: list[str] = []
        for name in self.formats:
            if name not in assigned.values():
                continue
            lines.append(f"- quantize.{name}:")
            options = {key: value for key, value in self.options.get(name, {}).items() if key != "skip"}
            lines += [f"    {key}: {_yaml(value)}" for key, value in options.items()]
            lines.append("    skip:")
            lines += [f"      - {_quoted(item)}" for item in self.options.get(name, {}).get("skip", ())]
            out = [found for layer, found in named.items() if assigned.get(layer) != name]
            theirs = {node for found in out for node in (found.node, found.bias_node)}
            nodes = ir.traversal.RecursiveGraphIterator(model.graph)
            others = [node for node in nodes if node.op_type in REACHED and node not in theirs]
            patterns = dict.fromkeys(names.selector(found.node, others) for found in out)
            lines += [f"      - {_quoted(pattern)}" for pattern in patterns]
            if lines[-1] == "    skip:":
                lines[-1] = "    skip: []"
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one format came to."""

    name: str
    measured: Mapping[str, Sensitivity]
    trials: tuple[Trial, ...]
    taken: tuple[str, ...]
    able: int

    def sentences(self, metric: str, layers: int) -> list[str]:
        """One per trial."""
        return [
            f"Trial {number}, {self.name}: {layers - self.able + len(trial.left_out)} of {layers} layers left out, "
            f"{metric} {abs(trial.score) if metric == 'relative_l2' else trial.score:.5g}: "
            f"{'meets' if trial.met else 'misses'} the budget."
            for number, trial in enumerate(self.trials, 1)
        ]


def _yaml(value: Any) -> str:
    """An option's value as a recipe spells it; JSON is YAML, words need no quotes."""
    is_word = isinstance(value, str) and value.isidentifier() and value not in ("true", "false", "null")
    return str(value) if is_word else json.dumps(value)


def _where(judge: Judge) -> str:
    if not judge.held_out:
        return "the calibration data, which the formats are fitted to as well"
    what = "batch" if judge.held_out == 1 else f"{judge.held_out} batches"
    return f"the calibration data's last {what}, held out from fitting"


def _quoted(text: str) -> str:
    """A text as YAML; single quotes turn a line feed into a space and take no control characters."""
    return "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)


def _in_turns(judge: Judge, before: ir.Model, after: ir.Model) -> tuple[float, float]:
    """Latencies of both in milliseconds, the better of two measurements each: the machine's pace may drift."""
    rounds = [(judge.latency_ms(before), judge.latency_ms(after)) for _ in range(2)]
    return min(first for first, _ in rounds), min(second for _, second in rounds)


def _named_layers(model: ir.Model) -> dict[str, Layer]:
    """The main graph's layers by the name of their node's first output, which is there and unique always."""
    found, _ = weighted.find(model, OPS)
    return {names.output_of(layer.node): layer for layer in found if layer.graph is model.graph}


def _together(named: Mapping[str, Layer], form: str) -> dict[str, list[str]]:
    """The layers that take a format only together with each, itself among them: those that share its weight.

    INT8 stores a weight beside the one in floating point where it must; the others leave a shared weight alone.
    """
    if form == "int8":
        return {layer: [layer] for layer in named}
    users: dict[int, list[str]] = {}
    for layer, found in named.items():
        users.setdefault(id(found.weight.source), []).append(layer)
    return {layer: users[id(found.weight.source)] for layer, found in named.items()}


def _elements(layer: Layer) -> int:
    size = 1
    for length in layer.weight.shape:
        size *= length
    return size
