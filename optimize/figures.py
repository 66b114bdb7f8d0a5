"""The figures that gates may name, and how limits are written ("40MB", "3%", "12ms")."""

from __future__ import annotations

import dataclasses
import re

SIZES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
ENERGIES = {"uJ": 1e-6, "mJ": 1e-3, "J": 1.0}
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure a gate may name.

    Attributes:
        unit: "" (a plain number), "bytes", "ms", "dB", "1/s", "%", "J".
        meaning: One line for the reference page.
        lowest: The least value that it can have, if there is one.
        highest: The greatest.
    """

    unit: str
    meaning: str
    lowest: float | None = 0.0
    highest: float | None = None


FIGURES: dict[str, Figure] = {
    "accuracy.cosine": Figure("", "mean cosine of each sample's output against the original; worst output", -1, 1),
    "accuracy.cosine_min": Figure("", "the worst sample's cosine", -1, 1),
    "accuracy.sqnr": Figure("dB", "signal to quantization noise ratio; worst output", None),
    "accuracy.relative_l2": Figure("", "norm of the difference over the norm of the original; worst output"),
    "accuracy.max_abs": Figure("", "largest absolute difference; worst output"),
    "accuracy.mean_abs": Figure("", "mean absolute difference; worst output"),
    "accuracy.top1_agreement": Figure("", "share of samples with the same largest class as the original", 0, 1),
    "accuracy.neighbour_agreement": Figure("", "share of samples with the same nearest neighbour", 0, 1),
    "metric": Figure("", "a task metric by name: metric.top1.min: 0.95", None),
    "drop": Figure("", "how far a task metric fell below the original's: drop.top1.max: 0.002", None),
    "speedup": Figure("", "latency of the original over the optimised engine's, medians"),
    "speedup_over_export": Figure("", "latency of the plainly exported model over the optimised engine's"),
    "latency.p50": Figure("ms", "median latency of the optimised engine"),
    "latency.p90": Figure("ms", "90th percentile"),
    "latency.p99": Figure("ms", "99th percentile"),
    "throughput": Figure("1/s", "samples per second of the optimised engine at the median latency"),
    "size": Figure("bytes", "optimised ONNX with its data"),
    "size_ratio": Figure("", "exported ONNX's size over the optimised one's"),
    "memory": Figure("bytes", "peak resident memory of a process that loads and runs the optimised engine"),
    "energy": Figure("J", "the optimised engine's energy per sample: the GPU's where it runs on one, or the CPU's"),
    "regression.latency": Figure("%", "median latency above the previous report's", None),
    "regression.size": Figure("%", "size above the previous report's", None),
    "regression.cosine": Figure("", "cosine below the previous report's", None),
}
"""Every figure by name. `metric` and `drop` take one more part: the metric's name."""

_LIMIT = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z%]*)\s*$")


def parse_limit(text: str | int | float, unit: str) -> float:
    """A limit in the figure's own unit: "40MB" → 40_000_000.0 for bytes, "3%" → 3.0, 1.5 → 1.5.

    Raises:
        ValueError: When it is no number, not finite, or its unit does not fit; the message says which do.
    """
    if isinstance(text, bool):
        raise ValueError("expected a number, got a boolean")
    if isinstance(text, int | float):
        value, suffix = float(text), ""
    else:
        match = _LIMIT.match(text)
        if not match:
            raise ValueError(f"expected a number{_spelled(unit)}, got '{text}'")
        value, suffix = float(match.group(1)), match.group(2)
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"expected a finite number, got {text}")
    known = {"bytes": SIZES, "ms": TIMES, "J": ENERGIES, "%": {"%": 1.0}, "dB": {"dB": 1.0}}
    factors: dict[str, float] = known.get(unit, {})
    if not suffix:
        return value
    if suffix == "%" and unit == "":
        return value / 100
    if suffix not in factors:
        expected = f"a number{_spelled(unit)}" if _spelled(unit) else "a plain number"
        raise ValueError(f"unit '{suffix}' does not fit; expected {expected}")
    return value * factors[suffix]


def _spelled(unit: str) -> str:
    examples = {"bytes": '"40MB" or "1.5GiB"', "ms": '"12ms"', "J": '"5mJ"', "%": '"3%"'}
    return f" such as {examples[unit]}" if unit in examples else ""


def unreachable(gate: str, limit: float) -> str:
    """Why no run can keep within the limit, or ""."""
    _, bound, figure = split_gate(gate)
    if bound == "min" and figure.highest is not None and limit > figure.highest:
        return f"above {figure.highest:g}, the highest it can be, so that no run can pass"
    if bound == "max" and figure.lowest is not None and limit < figure.lowest:
        return f"below {figure.lowest:g}, the lowest it can be, so that no run can pass"
    return ""


def split_gate(gate: str) -> tuple[str, str, Figure]:
    """ "accuracy.cosine.min" → ("accuracy.cosine", "min", its Figure).

    Raises:
        ValueError: When the name is not `<figure>.min` or `<figure>.max` of a known figure.
    """
    name, _, bound = gate.rpartition(".")
    if bound not in ("min", "max"):
        raise ValueError(f"a gate ends in .min or .max, got '{gate}'")
    figure = FIGURES.get(name) if name not in ("metric", "drop") else None
    if figure is None and name.partition(".")[0] in ("metric", "drop") and "." in name:
        figure = FIGURES[name.partition(".")[0]]
    if figure is None:
        raise ValueError(f"no figure is called '{name}'")
    return name, bound, figure
