"""Where accuracy went: inner values of both graphs compared, the layers that added most noise first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimize.engines.base import Progress
from optimize.evaluate.distance import Distance
from optimize.evaluate.matching import Match, match
from optimize.facts import OutputAccuracy, TensorError
from passes.base import Runner

Feeds = Mapping[str, np.ndarray[Any, Any]]

FIRST_VALUES = 8
"""Values asked for at first, before their size is known."""

BUDGET_BYTES = 256 << 20
"""Bytes of inner values held at a time, for each of the two graphs."""

IMPLAUSIBLE_NOISE, SOUND_NOISE = 0.8, 0.25
"""A value matched by module alone, with this much noise over signal inside a model whose outputs have less than
the second figure, is not the same value on both sides."""


def compare_tensors(
    original: ir.Model,
    optimized: ir.Model,
    feeds: Sequence[Feeds],
    runner: Runner,
    *,
    progress: Progress | None = None,
) -> tuple[TensorError, ...]:
    """Compare matched inner values of both graphs, the layers that added most noise first.

    What a layer added is its value's noise over signal less that of the matched values it is computed from: a
    layer behind a bad one is as noisy as that one without being to blame, and relative noises of independent
    factors add up in their product.

    Args:
        original: The graph before passes.
        optimized: The graph after, in operators that the runner has.
        feeds: A few batches.
        runner: Runs both without graph optimisation.
        progress: Told how many values are done.
    """
    pairs = match(original, optimized)
    tell = progress or (lambda what, done, total: None)
    figures: dict[str, OutputAccuracy] = {}
    start, count = 0, FIRST_VALUES
    while start < len(pairs):
        tell("comparing inner values", start, len(pairs))
        chunk = pairs[start : start + count]
        measured, held = _measure(original, optimized, chunk, feeds, runner)
        figures.update(measured)
        start += count
        count = max(1, min(4 * count, int(BUDGET_BYTES * len(chunk) / max(1, held))))
    usable = _sound(pairs, figures, _output_noise(original, optimized, feeds, runner))
    return tuple(sorted((_error(item, figures, usable) for item in usable.values()), key=_by_blame))


def worst_layers(tensors: Sequence[TensorError], share: float) -> tuple[str, ...]:
    """The fewest layers that added `share` of all layers' noise, the worst first; none when none was added.

    Args:
        tensors: As `compare_tensors` gives them.
        share: Of the noise, 0 to 1.
    """
    layers: dict[str, float] = {}
    for item in tensors:
        for name in item.layers if item.added else ():
            # what several layers added together is shared out evenly
            layers[name] = layers.get(name, 0.0) + min(item.added or 0.0, 1e6) / len(item.layers)
    wanted = share * sum(layers.values())
    chosen: list[str] = []
    for name, added in sorted(layers.items(), key=lambda entry: -entry[1]):
        if wanted <= 0:
            break
        chosen.append(name)
        wanted -= added
    return tuple(chosen)


def _measure(
    original: ir.Model, optimized: ir.Model, pairs: Sequence[Match], feeds: Sequence[Feeds], runner: Runner
) -> tuple[dict[str, OutputAccuracy], int]:
    """Figures per original value's name, and the bytes that one batch of them took."""
    distances = {pair.original: Distance(pair.original) for pair in pairs}
    held = 0
    left_names = [pair.original for pair in pairs]
    right_names = list(dict.fromkeys(pair.optimized for pair in pairs))
    # all batches through one graph, then through the other: a runner keeps one session at a time
    references = [runner(original, batch, left_names) for batch in feeds]
    for reference, batch in zip(references, feeds, strict=True):
        candidate = runner(optimized, batch, right_names)
        held = max(held, sum(array.nbytes for array in reference.values()) * len(feeds))
        for pair in pairs:
            distances[pair.original].add(reference[pair.original], candidate[pair.optimized])
    return {name: distance.result() for name, distance in distances.items()}, held


def _output_noise(original: ir.Model, optimized: ir.Model, feeds: Sequence[Feeds], runner: Runner) -> float:
    names = [str(value.name) for value in original.graph.outputs]
    shared = [name for name in names if any(value.name == name for value in optimized.graph.outputs)]
    pairs = [Match("", name, name, "", True) for name in shared]
    figures, _ = _measure(original, optimized, pairs, feeds, runner) if pairs else ({}, 0)
    return max((_noise(item) for item in figures.values()), default=math.inf)


def _sound(pairs: Sequence[Match], figures: Mapping[str, OutputAccuracy], output_noise: float) -> dict[str, Match]:
    """Pairs that could be compared and are plausibly the same value."""
    usable: dict[str, Match] = {}
    for pair in pairs:
        found = figures[pair.original]
        if found.max_abs is None:
            continue
        if not pair.by_name and _noise(found) > IMPLAUSIBLE_NOISE and output_noise < SOUND_NOISE:
            continue
        usable[pair.original] = pair
    return usable


def _error(pair: Match, figures: Mapping[str, OutputAccuracy], usable: Mapping[str, Match]) -> TensorError:
    found = figures[pair.original]
    noise = _noise(found)
    inherited = sum(_noise(figures[name]) for name in pair.after if name in usable)
    return TensorError(
        module=pair.module,
        value=pair.original,
        op_type=pair.op_type,
        sqnr_db=found.sqnr_db,
        cosine=found.cosine,
        added=0.0 if math.isinf(inherited) else max(0.0, noise - inherited),
        layers=pair.layers or _layers_before(pair, usable),
    )


def _layers_before(pair: Match, usable: Mapping[str, Match]) -> tuple[str, ...]:
    """The layers right before a value that none computes.

    An activation or normalisation takes signal away and leaves the noise, so that its share of noise grows: that
    is the doing of the layers it reads.
    """
    layers = (layer for name in sorted(pair.after) if name in usable for layer in usable[name].layers)
    return tuple(dict.fromkeys(layers))


def _by_blame(item: TensorError) -> tuple[float, float]:
    return -(item.added or 0.0), math.inf if item.sqnr_db is None else item.sqnr_db


def _noise(output: OutputAccuracy) -> float:
    """Noise power over signal power; infinite for what cannot be accepted."""
    if output.failure is not None:
        return math.inf
    if output.relative_l2 is not None:
        return output.relative_l2**2
    return 0.0 if not output.max_abs else math.inf
