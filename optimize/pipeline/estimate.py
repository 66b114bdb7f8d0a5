"""What a run will need, before it starts: time, memory and disk of each step, and a refusal of what cannot fit.

Weights are counted from the headers of the files, never read. The passes' work is learned by trying it
(`weights_ahead`), the machine's speed by measuring it (`machine_speed`). The constants below are what is left:
medians of single steps timed on an idle machine with two cores. `python -m tests.reliability.scale` sets estimates
beside what runs then took; see docs/reliability.md.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from optimize.errors import OptimizeError, StageFailed
from optimize.facts import StepEstimate
from optimize.pipeline import machine_speed, room, weights_ahead
from optimize.recipe.model import HuggingFaceSourceSpec, OnnxSourceSpec, Recipe
from passes import registry
from passes.target import Target

FROM_BYTES = 256 << 20
"""Weights below this are not estimated: such a run takes seconds, most of them for starting processes."""

START_S = {"capture": 1.0, "passes": 1.6}
"""Starting the step's process and importing what it needs, on the machine of `machine_speed`'s constants."""

NODE_S = {"capture": 0.00007, "passes": 0.0004}
"""Work on a node of the graph: reading and checking it; cleaning and fusing around it."""

BASE_BYTES = {"capture": 72e6, "passes": 76e6}
"""Anonymous memory of the step's process with its libraries, before any weight is touched."""

NODE_BYTES = 6e3
"""Anonymous memory of a node in the graph."""

TILES_BYTES = 40e6
"""Working arrays of a quantization on all cores, whatever the weight's size."""

WEIGHT_COPIES = 1.5
"""Quantized weights in memory at a time: between one and two, as the format has it."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the whole run will need.

    Attributes:
        steps: One entry per step, in order.
        weight_bytes: Of the model as it comes in.
        notes: What is not counted, full sentences.
    """

    steps: tuple[StepEstimate, ...]
    weight_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all steps that have one."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        """Memory of the hungriest step: steps run one after another."""
        return max((step.peak_anonymous_bytes or 0 for step in self.steps), default=0)

    @property
    def written_bytes(self) -> int:
        """Bytes on the disk when all is done."""
        return sum(step.written_bytes for step in self.steps)

    def of(self, step: str) -> StepEstimate | None:
        """The estimate of one step."""
        return next((item for item in self.steps if item.step == step), None)


def estimate(
    recipe: Recipe, files: Sequence[Path], target: Target, store: Path, until: Literal["passes", "build"] | None
) -> Estimate | None:
    """Estimate a run; None when the model is small, or is made by code that has not run yet.

    Args:
        recipe: The run.
        files: The source's files.
        target: The device as the engine uses it.
        store: Folder of the store, for the speed of its disk.
        until: Where the run stops.
    """
    size = sum(path.stat().st_size for path in files if path.is_file())
    if size < FROM_BYTES:
        return None
    if isinstance(recipe.source, OnnxSourceSpec):
        model = ir.load(recipe.base / recipe.source.path)
        kinds, nodes = weights_ahead.kinds_of(model), sum(1 for _ in model.graph.all_nodes())
    elif isinstance(recipe.source, HuggingFaceSourceSpec):
        kinds, nodes = _kinds_of_safetensors(files), 0
    else:
        return None
    passes = [(item.name, registry.find(item.name)(**item.options)) for item in recipe.passes]
    ahead = weights_ahead.look(kinds, passes, target)
    largest = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    speed = machine_speed.measure(largest, store)
    is_onnx = isinstance(recipe.source, OnnxSourceSpec)
    steps = [StepEstimate(step="digests", seconds=size / speed.digest + size / speed.read)]
    steps.append(_capture(ahead, nodes, speed) if is_onnx else _export(ahead))
    if until != "passes":
        steps.append(StepEstimate(step="reference", peak_anonymous_bytes=ahead.bytes_before, is_floor=True))
    steps.append(_passes(ahead, nodes, speed, is_floor=bool(ahead.unknown) or not is_onnx))
    if until != "passes":
        spec = recipe.evaluate.throughput
        if until is None and spec is not None and "exported" in spec.contenders:
            steps.append(_build("build baseline", ahead.bytes_before))
        steps.append(_build("build", ahead.bytes_after))
        steps.append(StepEstimate(step="output", written_bytes=2 * ahead.bytes_after, is_floor=True))
    else:
        steps.append(
            StepEstimate(step="output", seconds=ahead.bytes_after / speed.write, written_bytes=ahead.bytes_after)
        )
    notes = [f"What {name} needs shows only as it runs." for name in ahead.unknown]
    if until != "passes":
        notes.append("Steps marked 'at least' count the weights alone; what inference adds depends on the data.")
    return Estimate(tuple(steps), ahead.bytes_before, tuple(notes))


def problems(found: Estimate, store: Path, output: Path | None) -> list[OptimizeError]:
    """Why the run cannot fit here; empty when it can."""
    reasons: list[OptimizeError] = []
    free = room.memory_bytes()
    hungriest = max(found.steps, key=lambda step: step.peak_anonymous_bytes or 0)
    if free is not None and found.peak_bytes > free:
        reasons.append(
            StageFailed(
                f"step '{hungriest.step}' needs {_at_least(hungriest)}{gigabytes(found.peak_bytes)} of memory, "
                f"{gigabytes(free)} are free.",
                hint="Use a larger machine, raise the container's limit, or stop earlier with --until passes.",
            )
        )
    placed = sum(step.written_bytes for step in found.steps if step.step == "output")
    wanted = {"store": (store, found.written_bytes - placed)}
    if output is not None and _device(output) == _device(store):
        wanted = {"store": (store, found.written_bytes)}
    elif output is not None:
        wanted["output folder"] = (output, placed)
    for what, (folder, needed) in wanted.items():
        left = room.disk_bytes(folder)
        if needed > left:
            other = "--store" if what == "store" else "--output"
            reasons.append(
                StageFailed(
                    f"the {what} '{folder}' has {gigabytes(left)} free; the run writes {gigabytes(needed)} there.",
                    hint=f"Choose another disk with {other}.",
                )
            )
    return reasons


def lines(found: Estimate) -> list[str]:
    """The estimate for a reader: a line per step and one in all."""
    shown = []
    for step in found.steps:
        words = []
        if step.seconds is not None:
            words.append(f"{step.seconds:.0f} s" if step.seconds < 120 else f"{step.seconds / 60:.0f} min")
        if step.peak_anonymous_bytes:
            words.append(f"{gigabytes(step.peak_anonymous_bytes)} of memory")
        if step.written_bytes:
            words.append(f"{gigabytes(step.written_bytes)} written")
        shown.append(f"estimate    {step.step}: {_at_least(step)}{', '.join(words)}")
    return [*shown, *(f"            {note}" for note in found.notes)]


def gigabytes(count: float) -> str:
    """ "1.24 GB", "72 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _at_least(step: StepEstimate) -> str:
    return "at least " if step.is_floor else ""


def _capture(ahead: weights_ahead.Ahead, nodes: int, speed: machine_speed.Speed) -> StepEstimate:
    started = (START_S["capture"] + NODE_S["capture"] * nodes) * speed.slowdown
    return StepEstimate(
        step="capture",
        seconds=started + ahead.bytes_before / speed.scan + ahead.bytes_before / speed.read,
        peak_anonymous_bytes=round(BASE_BYTES["capture"] + NODE_BYTES * nodes),
    )


def _export(ahead: weights_ahead.Ahead) -> StepEstimate:
    """A PyTorch export holds the weights and writes them."""
    return StepEstimate(
        step="capture",
        peak_anonymous_bytes=ahead.bytes_before,
        written_bytes=ahead.bytes_before,
        is_floor=True,
    )


def _passes(ahead: weights_ahead.Ahead, nodes: int, speed: machine_speed.Speed, *, is_floor: bool) -> StepEstimate:
    started = (START_S["passes"] + NODE_S["passes"] * nodes) * speed.slowdown
    moved = ahead.bytes_before / speed.read + ahead.bytes_after / speed.write + ahead.bytes_after / speed.digest
    work = TILES_BYTES + WEIGHT_COPIES * ahead.largest if ahead.largest else 0
    return StepEstimate(
        step="passes",
        seconds=None if is_floor else started + moved + ahead.seconds,
        peak_anonymous_bytes=round(BASE_BYTES["passes"] + NODE_BYTES * nodes + work),
        written_bytes=ahead.bytes_after,
        is_floor=is_floor,
    )


def _build(step: str, size: int) -> StepEstimate:
    return StepEstimate(step=step, peak_anonymous_bytes=size, written_bytes=size, is_floor=True)


def _kinds_of_safetensors(files: Sequence[Path]) -> collections.Counter[weights_ahead.Kind]:
    """Weights by shape from the headers; every matrix is taken to be read by a matrix product."""
    import safetensors

    types = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
    found: collections.Counter[weights_ahead.Kind] = collections.Counter()
    for path in files:
        if path.suffix != ".safetensors":
            continue
        with safetensors.safe_open(str(path), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                dtype, shape = types.get(part.get_dtype()), tuple(part.get_shape())
                if dtype is not None:
                    op_type = "MatMul" if len(shape) == 2 else ""
                    found[weights_ahead.Kind(op_type, shape, dtype)] += 1
    return found


def _device(folder: Path) -> int:
    return room.existing(folder).stat().st_dev
