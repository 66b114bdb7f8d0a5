"""Faults that no single key has: a pass without its calibration data, a gate on what is not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optimize.recipe.faults import Faults
from optimize.recipe.gate_list import GATES
from optimize.recipe.model import DataSpec, EvaluateSpec, SourceSpec
from optimize.recipe.nodes import Node, Place
from optimize.recipe.pass_list import ReadPass
from passes.target import Target


def check_passes(
    passes: Sequence[ReadPass], calibration: DataSpec | None, target: Target | None, faults: Faults
) -> None:
    """Each pass can do its work with this calibration data on this target."""
    for found in passes:
        name = found.spec.name
        is_absent = calibration is None and not faults.touches(("calibration",))
        if is_absent and found.instance.requires_calibration():
            message = f"{name} needs calibration data; add a calibration: section"
            faults.add((*found.path, name), message, found.place)
        refused = found.instance.check(target) if target is not None else None
        if refused is not None:
            faults.add((*found.path, name), refused, found.place)


def check_gates(
    node: Node | None, gates: dict[str, float], evaluate: EvaluateSpec, previous: str | None, faults: Faults
) -> None:
    """Each gate names a figure that this run measures."""
    for gate in gates:
        figure = gate.rpartition(".")[0]
        for why in _unmeasured(figure, evaluate, previous):
            place = node.keys[gate] if node is not None and gate in node.keys else Place()
            faults.add((GATES, gate), why, place)


_TIMED = ("speedup", "speedup_over_export", "latency", "throughput", "memory", "regression.latency")


def _unmeasured(figure: str, evaluate: EvaluateSpec, previous: str | None) -> Iterator[str]:
    """Why a figure would have no value in this run; nothing when it has one."""
    if figure.startswith("regression.") and previous is None:
        yield "compares with an earlier run; say which under previous: (a report.json)"
    if any(figure == name or figure.startswith(f"{name}.") for name in _TIMED):
        throughput = evaluate.throughput
        needed = {"speedup": ("original",), "speedup_over_export": ("exported",)}.get(figure, ())
        if throughput is None:
            yield "speed is not measured: evaluate.throughput is null"
            return
        missing = [name for name in (*needed, "optimized") if name not in throughput.contenders]
        if missing:
            yield f"needs '{missing[0]}' among evaluate.throughput.contenders"
    if figure.partition(".")[0] in ("metric", "drop"):
        if evaluate.metric is None and evaluate.labels is None:
            yield "no task metric is computed; name the labels under evaluate.labels, or give evaluate.metric"
        elif evaluate.metric is None and figure.partition(".")[2] != "top1":
            yield "labels alone give the metric 'top1' only; give evaluate.metric for another"
    if figure == "accuracy.top1_agreement" and evaluate.kind not in ("auto", "classification"):
        yield f"needs evaluate.kind classification, got {evaluate.kind}"
    if figure == "accuracy.neighbour_agreement" and evaluate.kind not in ("auto", "embedding"):
        yield f"needs evaluate.kind embedding, got {evaluate.kind}"


def check_evaluation(node: Node | None, evaluate: EvaluateSpec, source: SourceSpec | None, faults: Faults) -> None:
    """Timing asks only for contenders and shapes that the source can give."""
    throughput = evaluate.throughput
    if throughput is None or source is None:
        return
    timing = node.mapping.get("throughput") if node is not None else None
    if "compiled" in throughput.contenders and source.kind == "onnx":
        message = "an ONNX source has no torch.compile form; take 'compiled' out"
        faults.add(("evaluate", "throughput", "contenders"), message, _place(timing, "contenders"))
    shapes = timing.mapping.get("shapes") if timing is not None else None
    for axis, size in throughput.shapes.items():
        limits = source.ranges.get(axis)
        if limits is not None and not limits.minimum <= size <= limits.maximum:
            message = f"expected {limits.minimum} to {limits.maximum} (source.ranges.{axis}), got {size}"
            faults.add(("evaluate", "throughput", "shapes", axis), message, _place(shapes, axis))


def _place(node: Node | None, key: str) -> Place:
    below = node.mapping.get(key) if node is not None else None
    return below.place if below is not None else Place()
