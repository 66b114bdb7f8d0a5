"""The facts of a sweep: what came out of each run beside the others."""

from __future__ import annotations

from optimize.facts import Bytes, Fact, Finite, Milliseconds, Ratio


class Point(Fact):
    """One way to run a model, by its accuracy, latency and size.

    Attributes:
        label: Unique among those it is compared with; in a sweep also the name of its output folder.
        variables: Values that a sweep gave the recipe's variables.
        verdict: "PASS", "FAIL", "ERROR", or "" for what no gate judged.
        cosine: Mean cosine of the engine (or the simulated model) against the original.
        latency_ms: Median.
        speedup: Over the original.
        size_bytes: Of the ONNX with its data.
        error: Why a run did not finish.
        is_on_front: Whether no other one is better in one figure and at least as good in the others.
    """

    label: str
    variables: dict[str, str] = {}
    verdict: str = ""
    cosine: Finite | None = None
    latency_ms: Milliseconds | None = None
    speedup: Ratio | None = None
    size_bytes: Bytes | None = None
    error: str = ""
    is_on_front: bool = False


class Sweep(Fact):
    """The runs that a run was made together with.

    Attributes:
        label: Which of the points the run itself is.
    """

    label: str
    points: tuple[Point, ...]
