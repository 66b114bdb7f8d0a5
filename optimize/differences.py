"""What changed between two models or two reports, as facts that evaluation writes and views read."""

from __future__ import annotations

from typing import Literal

from optimize.facts import Fact, OutputAccuracy

Direction = Literal["better", "worse", "same", "no significant difference", "changed"]
"""Same: equal, or within noise where no interval is known. Changed: neither direction is better."""


class FigureChange(Fact):
    """One figure before and after.

    Attributes:
        name: As `optimize.figures` names it: "latency.p50".
        unit: "", "ms", "bytes", "dB", "1/s", "%", "J".
        before, after: None where that side does not have it.
        direction: Which way it went; None when one side is missing or the two are not comparable.
        ratio: after / before for timed figures.
        low, high: 95 % interval of the ratio.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    direction: Direction | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


class CountChange(Fact):
    """How many of something there were and are: nodes of an operator, bytes of a weight type."""

    what: str
    before: int
    after: int


class TextChange(Fact):
    """Something named that was one thing and is another; "" where it is absent."""

    what: str
    before: str
    after: str


class Difference(Fact):
    """Two models or reports compared.

    Attributes:
        kind: What was compared.
        before, after: What the two are called.
        figures: Accuracy, speed, size, memory; a figure is listed when either side has it.
        outputs: Models only: the second one's outputs against the first one's.
        flips: Models only: samples whose decision changed, and of how many; None when outputs are no classes.
        ops: Operators whose count changed.
        weights: Bytes of each weight type, where they changed.
        layers: Layers whose number formats changed, "int8 weight, float32 activation".
        gates: Reports only: gates whose outcome changed ("held", "missed").
        environment: Reports only: library versions, device, threads that changed.
        notes: Full sentences: what keeps the two from being compared, and what to mind.
    """

    kind: Literal["reports", "models"]
    before: str
    after: str
    figures: tuple[FigureChange, ...] = ()
    outputs: tuple[OutputAccuracy, ...] = ()
    flips: tuple[int, int] | None = None
    ops: tuple[CountChange, ...] = ()
    weights: tuple[CountChange, ...] = ()
    layers: tuple[TextChange, ...] = ()
    gates: tuple[TextChange, ...] = ()
    environment: tuple[TextChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the second model's outputs cannot be accepted at all."""
        return tuple(f"{item.output}: {item.failure}" for item in self.outputs if item.failure)
