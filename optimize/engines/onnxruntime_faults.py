"""Finding the strongest graph optimisation under which ONNX Runtime still computes what the graph says.

ONNX Runtime 1.32 rewrites some quantized graphs into others: `ReluQuantRewrite` drops a Relu before an FP8
quantizer, `QDQPropagationTransformer` with `MatMulAddFusion` loses a zero point's type, and
`WeightBiasQuantization` requantizes. The graph run without optimisation is the truth to compare with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.base import Feeds
from optimize.engines.onnxruntime_saturation import runs_wrong_as_written
from optimize.engines.onnxruntime_session import SUSPECTS, Level, OnnxRuntimeSession, Settings
from optimize.errors import StageFailed

Outputs = dict[str, np.ndarray[Any, Any]]

LADDER: tuple[Level, ...] = ("all", "extended", "basic", "disable")

FLOAT_TOLERANCE = 1e-2
"""Relative L2 for graphs of floats: reordered float32 sums give 1e-6, TF32 (10 bits) about 1e-3."""

QUANTIZED_TOLERANCE = 0.15
"""Relative L2 for graphs with rounding: a value on a rounding boundary may fall to either side, and such
flips add up over layers (0.03 to 0.1 measured on real encoders); the known faults give 0.4 to 0.8."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What to build with, and how it was found.

    Attributes:
        settings: The strongest right settings.
        relative_l2: Worst output's distance from the unoptimised run; None when it was not compared.
        notes: Full sentences about what was wrong.
    """

    settings: Settings
    relative_l2: float | None = None
    notes: tuple[str, ...] = ()


def choose(model: Path, wanted: Settings, reference: Outputs, feeds: Feeds, *, is_quantized: bool) -> Verified:
    """The strongest settings, not above `wanted`, whose results match the unoptimised graph's on `feeds`.

    Args:
        model: The ONNX file.
        wanted: What was asked for.
        reference: Outputs of the graph as written.
        feeds: The batch they were computed on.
        is_quantized: Whether the graph rounds to few bits, which allows a larger distance.

    Raises:
        StageFailed: When no settings give its results.
    """
    limit = QUANTIZED_TOLERANCE if is_quantized else FLOAT_TOLERANCE
    attempt = functools.partial(_distance, model, reference, feeds)
    notes: list[str] = []
    for settings in _rungs(wanted):
        distance, problem = attempt(settings)
        if distance is not None and distance <= limit:
            if notes and set(settings.disabled_optimizers) > set(wanted.disabled_optimizers):
                settings, distance = _without_fewest(wanted, settings, distance, limit, attempt)
            if notes:
                notes.append(f"onnxruntime: built with {_spelled(settings)}, which gives {distance:.2g}.")
            return Verified(settings, distance, tuple(notes))
        notes.append(
            f"onnxruntime: {_spelled(settings)} {problem}."
            if problem
            else f"onnxruntime: {_spelled(settings)} changes the results: relative L2 {distance:.2g} against "
            f"the graph run as written, at most {limit:g} is rounding."
        )
    if wanted.level not in ("all", "extended") and runs_wrong_as_written(model):
        raise StageFailed(
            f"onnxruntime: this processor sums products of 8 bits in saturating 16 bits, which graph optimisation "
            f"'{wanted.level}' does not avoid. {notes[-1]}",
            hint="Set engine.graph_optimization: extended or all, or quantize with weight_bits: 7.",
        )
    raise StageFailed(
        f"onnxruntime: no graph optimisation level gives the results of the graph as written. {notes[-1]}",
        hint="Set engine.graph_optimization: disable and engine.verify: false to build it regardless.",
    )


def _rungs(wanted: Settings) -> Iterator[Settings]:
    yield wanted
    if wanted.level == "disable":
        return
    # left out together before a whole level is given up
    suspects = tuple(dict.fromkeys((*wanted.disabled_optimizers, *SUSPECTS)))
    yield dataclasses.replace(wanted, disabled_optimizers=suspects)
    for level in LADDER[LADDER.index(wanted.level) + 1 :]:
        yield dataclasses.replace(wanted, level=level)


def _without_fewest(
    wanted: Settings,
    settings: Settings,
    distance: float,
    limit: float,
    attempt: Callable[[Settings], tuple[float | None, str]],
) -> tuple[Settings, float]:
    """Give back every suspect that turns out innocent."""
    for name in SUSPECTS:
        if name in wanted.disabled_optimizers:
            continue
        fewer = tuple(kept for kept in settings.disabled_optimizers if kept != name)
        candidate = dataclasses.replace(settings, disabled_optimizers=fewer)
        found, _ = attempt(candidate)
        if found is not None and found <= limit:
            settings, distance = candidate, found
    return settings, distance


def _distance(model: Path, reference: Outputs, feeds: Feeds, settings: Settings) -> tuple[float | None, str]:
    try:
        candidate = _outputs(model, settings, feeds)
    except StageFailed as error:
        return None, f"does not load or run ({error.message})"
    return max((relative_l2(reference[name], candidate[name]) for name in reference), default=0.0), ""


def _outputs(model: Path, settings: Settings, feeds: Feeds) -> Outputs:
    with OnnxRuntimeSession(model, dataclasses.replace(settings, save_to=None)) as session:
        return session.run(feeds)


def relative_l2(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> float:
    """||candidate - reference|| / ||reference||, infinite where one of them is not finite or shapes differ.

    Places that are not finite in the same way on both sides count as equal.
    """
    if reference.shape != candidate.shape:
        return float("inf")
    if reference.dtype.kind in "OSU":
        return 0.0 if np.array_equal(reference, candidate) else float("inf")
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(right[finite]).all():
        return float("inf")
    norm = float(np.linalg.norm(left[finite]))
    error = float(np.linalg.norm(right[finite] - left[finite]))
    return error / norm if norm else (0.0 if error == 0.0 else float("inf"))


def _spelled(settings: Settings) -> str:
    text = f"graph optimisation '{settings.level}'"
    if settings.disabled_optimizers:
        text += f" without {', '.join(settings.disabled_optimizers)}"
    return text
