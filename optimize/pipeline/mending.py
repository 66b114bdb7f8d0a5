"""Recipe lines that would mend a missed accuracy gate, tried before they are printed."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from optimize.errors import StageFailed
from optimize.evaluate import attribution
from optimize.facts import TensorError
from optimize.pipeline import bisecting
from optimize.pipeline.bisecting import Bench, Prefix
from optimize.recipe.model import PassSpec
from passes import registry
from passes.base import PassContext

SHARES = (0.5, 0.8, 0.95, 0.99)
"""The fewest layers that added these shares of the noise are kept in floating point, one try after the other."""

MOST_SECONDS = 600
"""No further try is begun after this long: applying a slow pass again may cost minutes."""

WIDTH = 100
"""A longer entry takes a line for each option."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_NOT_TEXT = ("true", "false", "null", "yes", "no", "on", "off")


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Lines for a recipe, and what became of them when tried.

    Attributes:
        lines: The pass's entry as it should read; "" when there is none to give.
        check: What was measured with it, a full sentence.
    """

    lines: str = ""
    check: str = ""


def mend(
    before: Prefix, specs: Sequence[PassSpec], tensors: Sequence[TensorError], bench: Bench, context: PassContext
) -> Remedy:
    """Leave out the layers that added most noise until the missed gates hold.

    Args:
        before: The model as the culprit, the first of `specs`, was given it.
        specs: The culprit and the passes after it.
        tensors: As `attribution.compare_tensors` gives them.
        bench: Judges the candidates.
        context: For the passes.
    """
    culprit, rest = specs[0], specs[1:]
    if "skip" not in registry.find(culprit.name).model_fields:
        return Remedy(check=f"{culprit.name} cannot leave single layers out; leave the pass out.")
    if not attribution.worst_layers(tensors, 1.0):
        return Remedy(check="No layer could be told by a module's or a node's name, so none can be left out.")
    remedy, tried, started = Remedy(), 0, time.monotonic()
    for share in SHARES:
        layers = attribution.worst_layers(tensors, share)
        mended = _with_skip(culprit, layers)
        lines = entry(mended)
        if lines == remedy.lines:
            continue
        if tried and time.monotonic() - started > MOST_SECONDS:
            break
        model = before.model.clone()
        tried += 1
        try:
            bisecting.apply([mended, *rest], model, context)
        except StageFailed as error:  # what a later pass expects counts layers that are left out now
            remedy = Remedy(lines, f"Tried: with these lines the passes fail ({error.message.rstrip('.')}).")
            continue
        result = bench.measure(model, culprit.name)
        what = bench.figure(result)
        if not bench.missed(result):
            return Remedy(lines, f"Tried: with these lines every missed accuracy gate holds ({what}).")
        remedy = Remedy(lines, f"Tried: with these lines it is better, but not enough ({what}).")
    return remedy


def _with_skip(spec: PassSpec, layers: Sequence[str]) -> PassSpec:
    """The pass with more layers left out, and without the counts that it was to find."""
    # Names are patterns to a pass; a bracket in one must stand for itself.
    patterns = [re.sub(r"([*?[])", r"[\1]", layer) for layer in layers]
    skip = [*spec.options.get("skip", ()), *(name for name in patterns if name not in spec.options.get("skip", ()))]
    kept = {name: value for name, value in spec.options.items() if name != "expect"}
    return spec.model_copy(update={"options": {**kept, "skip": skip}})


def entry(spec: PassSpec) -> str:
    """The pass under a recipe's `passes:`, with the options that are not its defaults."""
    options = registry.find(spec.name)(**spec.options).model_dump(mode="json", exclude_defaults=True)
    inner = ", ".join(f"{key}: {_flow(value)}" for key, value in options.items())
    line = f"  - {spec.name}: {{{inner}}}" if inner else f"  - {spec.name}"
    if len(line) <= WIDTH:
        return line
    lines = [f"  - {spec.name}:"]
    for key, value in options.items():
        if isinstance(value, list):
            lines += [f"      {key}:", *(f"        - {_flow(item)}" for item in value)]
        else:
            lines.append(f"      {key}: {_flow(value)}")
    return "\n".join(lines)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
