"""What every graph pass is: `Pass`, what it is given (`PassContext`), what it answers (`PassResult`)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir
import pydantic

from passes.target import Target

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""Named arrays: a model's inputs or outputs, or inner values, by value name."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """A place that a pass looked at and left alone.

    Attributes:
        node: The node's name in the graph.
        reason: Why, in words that show both sides: "Softmax axis is 1, needs last".
        module: The source module the node came from ("encoder.layer.0.attention.self.query"), or "".
    """

    node: str
    reason: str
    module: str = ""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How often one pattern was rewritten, and what came close.

    Attributes:
        name: The pattern's name, as a recipe's `expect` spells it.
        found: Matches rewritten (and kept after their numerical check).
        near_misses: Places that look like the pattern and do not match, with the reason.
    """

    name: str
    found: int
    near_misses: tuple[Skip, ...] = ()


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What a pass did; facts only, kept in the report.

    Attributes:
        patterns: One entry per pattern the pass knows, zero counts included.
        skips: Nodes in scope of the pass that it left alone, each with its reason.
        changed: Names of nodes (or modules) changed, e.g. every quantized layer.
        figures: Named numbers or words worth reporting ("weight bytes before": 90_000_000).
        notes: Full sentences for the reader: warnings, roll-backs, things to know.
    """

    patterns: tuple[Pattern, ...] = ()
    skips: tuple[Skip, ...] = ()
    changed: tuple[str, ...] = ()
    figures: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rewrites(self) -> int:
        """Number of rewrites over all patterns; 0 is an honest answer."""
        return sum(pattern.found for pattern in self.patterns)


class PassFailed(Exception):
    """A pass cannot do what the recipe asked of it: what, where, what to do, in one sentence or two."""


class Runner(Protocol):
    """Runs a model in floating point, without graph optimisation, and gives the asked values."""

    def __call__(self, model: ir.Model, feeds: Arrays, outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Run once. `outputs` names any values of the main graph; empty means the graph's outputs."""
        ...


class Calibration(Protocol):
    """The calibration data, and a way to watch values while it flows through a model."""

    @property
    def samples(self) -> int:
        """Number of samples (rows of the batch axis) in the calibration data."""
        ...

    def feeds(self) -> Iterator[Arrays]:
        """Yield the calibration batches, `{input name: array}`, always in the same order."""
        ...

    def observe(self, model: ir.Model, values: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yield `{value name: array}` per batch for the named inner values of `model`, run unoptimised.

        One batch is in memory at a time; to bound memory on large models ask for few values at once.
        """
        ...


class Judge(Protocol):
    """Scores a candidate model against the original on calibration feeds, for searching passes."""

    @property
    def held_out(self) -> int:
        """Batches at the end of the calibration data that alone are scored, so nothing should be fitted to them.

        0: there are too few batches to hold any out, and all are scored.
        """
        ...

    def accuracy(self, model: ir.Model) -> dict[str, float]:
        """Figures against the original: at least `cosine` (mean), `sqnr_db` and `relative_l2`."""
        ...

    def latency_ms(self, model: ir.Model) -> float:
        """Median latency of the built model on the target's engine, in milliseconds."""
        ...


def _no_progress(what: str, done: int, total: int) -> None:
    """Progress nobody watches."""


@dataclasses.dataclass(frozen=True)
class PassContext:
    """What a pass may know of the world outside its graph.

    Attributes:
        target: What the device and engine can run.
        run: Runs a model on given feeds; None means numerical checks cannot be made (say so in `notes`).
        calibration: Calibration data, or None when the recipe has none.
        judge: Scores candidates, for passes that search; None outside a pipeline.
        seed: Seed for `numpy.random.default_rng`.
        progress: Called with (what, done, total); cheap to call often.
        base_directory: Folder that relative file names in a pass's options start from.
        scratch: A folder the pass may write temporary files to; emptied afterwards.
        lessons: Files with what passes asked to learn from the source's module, by `passes.lessons.key`.
    """

    target: Target
    run: Runner | None = None
    calibration: Calibration | None = None
    judge: Judge | None = None
    seed: int = 0
    progress: Callable[[str, int, int], None] = _no_progress
    base_directory: str = "."
    scratch: str | None = None
    lessons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def rng(self) -> np.random.Generator:
        """A fresh generator from the run's seed: the same numbers on every call."""
        return np.random.default_rng(self.seed)


class Pass(pydantic.BaseModel, abc.ABC):
    """One graph transformation. Its fields are the recipe's options, the CLI's help and the reference page.

    A subclass lives in a file of its own; `passes/fuse/attention.py` is `fuse.attention` in a recipe. Running
    it a second time changes nothing. It must leave the model valid, its inputs and outputs (names, order,
    types, shapes) as they were, and `metadata_props` on nodes that live on.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    version: ClassVar[int] = 1
    """Raised when the result may differ for the same input; stored results then no longer count."""

    needs_calibration: ClassVar[bool] = False
    """True when the pass cannot run without calibration data whatever its options are."""

    expect: dict[str, int] = pydantic.Field(
        default_factory=dict, description="Rewrites that must be found, per pattern; a miss fails the run."
    )

    def requires_calibration(self) -> bool:
        """Whether these options need calibration data; checked before the model is touched."""
        return self.needs_calibration

    def check(self, target: Target) -> str | None:
        """Why this pass with these options cannot serve `target` (with what to use instead), or None."""
        return None

    def missing(self) -> str | None:
        """How to install what these options need and is not here, or None."""
        return None

    def patterns_to_skip(self) -> tuple[str, ...]:
        """Every pattern of nodes that the recipe tells this pass to leave alone."""
        return tuple(getattr(self, "skip", ()))

    def lesson(self) -> dict[str, Any] | None:
        """What must be learned from the source's own module first, where the user's code runs, or None."""
        return None

    @abc.abstractmethod
    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Change `model` in place.

        Raises:
            PassFailed: When the options ask for something this model or target cannot give.
        """
