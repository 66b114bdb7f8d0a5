"""What a reader wants first: the verdict in a sentence, and three numbers with the gates that judge them."""

from __future__ import annotations

import dataclasses
from functools import partial

from optimize.facts import AccuracyResult, GateResult, Latency, Speedup
from optimize.report import wording
from optimize.report.model import Report

SPEED = ("speedup", "speedup_over_export", "latency", "throughput", "energy", "regression.latency")
SIZE = ("size", "size_ratio", "memory", "regression.size")


@dataclasses.dataclass(frozen=True)
class Headline:
    """One of the three numbers.

    Attributes:
        title: "Speed", "Size" or "Accuracy".
        value: "3.1 ×", or a dash when it was not measured.
        unit: What the value is: "faster", "smaller", "cosine".
        lines: What it is made of, a short sentence each.
        gates: The gates that judge it.
    """

    title: str
    value: str
    unit: str
    lines: tuple[str, ...]
    gates: tuple[GateResult, ...]


def headlines(report: Report) -> tuple[Headline, Headline, Headline]:
    """Speed, size, accuracy."""
    return _speed(report), _size(report), _accuracy(report)


def sentence(report: Report) -> str:
    """The three numbers in a line: "3.1 × faster, 3.8 × smaller, cosine 0.9971"."""
    parts = []
    for head in headlines(report):
        if head.value != wording.ABSENT:
            text = (
                f"{head.unit} {head.value}"
                if head.title == "Accuracy" and head.value != "unsound"
                else f"{head.value} {head.unit}"
            )
            parts.append(text.strip())
    return ", ".join(parts) or "nothing measured"


def reason(report: Report) -> str:
    """Why the verdict is what it is, in a sentence."""
    failed_stage = next((stage for stage in report.stages if stage.outcome == "failed"), None)
    if failed_stage:
        return f"Stage '{failed_stage.name}' failed: {failed_stage.error or 'no reason was recorded'}"
    final = final_accuracy(report)
    if final and final.failures:
        return f"An output cannot be accepted: {final.failures[0]}"
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        names = ", ".join(gate.gate for gate in failed)
        return f"{len(failed)} of {wording.count(len(report.gates), 'gate')} failed: {names}"
    if report.stopped_after:
        return f"Stopped after '{report.stopped_after}' as asked; nothing later was measured or judged."
    if not report.gates:
        return "No gates are set; every output is sound."
    return "The gate holds." if len(report.gates) == 1 else f"All {len(report.gates)} gates hold."


def final_accuracy(report: Report) -> AccuracyResult | None:
    """The last stage's accuracy: the engine's, when the run came that far."""
    return report.accuracy[-1] if report.accuracy else None


def worst(result: AccuracyResult, figure: str, *, low_is_bad: bool) -> float | None:
    """A figure's worst value over the outputs; None when any output lacks it."""
    values = [getattr(output, figure) for output in result.outputs]
    if not values or any(value is None for value in values):
        return None
    return float(min(values) if low_is_bad else max(values))


def contender(report: Report, name: str) -> Latency | None:
    """One contender's timing."""
    timed = report.throughput.contenders if report.throughput else ()
    return next((item for item in timed if item.contender == name), None)


def speedup(report: Report, over: str) -> Speedup | None:
    """How much faster the optimised engine is than another contender."""
    known = report.throughput.speedups if report.throughput else ()
    return next((item for item in known if item.of == "optimized" and item.over == over), None)


def gate_text(gate: GateResult) -> str:
    """ "0.9971, at least 0.99"."""
    bound = "at least" if gate.gate.endswith(".min") else "at most"
    value, limit = wording.against(gate.value, gate.limit, gate.unit)
    return f"{'not measured' if gate.value is None else value}, {bound} {limit}"


def is_elsewhere(report: Report, name: str) -> bool:
    """Whether a contender ran on another kind of device than the optimised engine: no measure of the work here."""
    ours, other = contender(report, "optimized"), contender(report, name)
    known = {item.device for item in (ours, other) if item and item.device}
    return len(known) > 1


def interval(item: Speedup, device: str = "") -> str:
    """The ratio with its confidence interval, or the plain statement that there is no difference."""
    span = f"{wording.ratio(item.ratio)} (95 %: {wording.number(item.low, 3)}–{wording.number(item.high, 3)})"
    if item.is_significant:
        return f"{span} over {item.over}{device}"
    return f"no significant difference from {item.over}{device}: {span}"


def flips(result: AccuracyResult) -> str:
    """ "412 of 50,000 changed, 60 % from right to wrong, 25 % from wrong to right"."""
    text = f"{result.flips_total:,} of {result.decisions:,} changed"
    if not result.flips_total or result.flips_worse is None or result.flips_better is None:
        return text
    worse, better = (count / result.flips_total for count in (result.flips_worse, result.flips_better))
    return f"{text}, {worse:.0%} from right to wrong, {better:.0%} from wrong to right".replace("%", " %")


def _gates(report: Report, figures: tuple[str, ...]) -> tuple[GateResult, ...]:
    return tuple(gate for gate in report.gates if _figure_of(gate.gate, figures))


def _figure_of(gate: str, figures: tuple[str, ...]) -> bool:
    name = gate.rpartition(".")[0]
    return any(name == figure or name.startswith(figure + ".") for figure in figures)


def _speed(report: Report) -> Headline:
    gates = _gates(report, SPEED)
    compared = [item for item in map(partial(speedup, report), ("original", "exported")) if item]
    compared.sort(key=lambda item: is_elsewhere(report, item.over))
    first = compared[0] if compared else None
    if first is None:
        return Headline("Speed", wording.ABSENT, "not measured", (), gates)
    lines = [
        interval(item, ", which ran on the CPU" if is_elsewhere(report, item.over) else "") for item in compared
    ]
    before, after = contender(report, first.over), contender(report, "optimized")
    if before and after:
        lines.insert(
            0,
            f"{wording.milliseconds(before.p50_ms)} → {wording.milliseconds(after.p50_ms)} median, "
            f"{wording.number(after.throughput_per_s)} samples/s",
        )
    spent = [side.own_energy for side in (before, after) if side is not None and side.own_energy is not None]
    if len(spent) == 2 and spent[0].device == spent[1].device:
        lines.append(
            f"{wording.joules(spent[0].joules_per_sample)} → {wording.joules(spent[1].joules_per_sample)} a sample "
            f"({spent[1].source})"
        )
    if not first.is_significant:
        return Headline("Speed", wording.ratio(first.ratio), "no significant difference", tuple(lines), gates)
    if first.ratio < 1:
        return Headline("Speed", wording.ratio(1 / first.ratio), "slower", tuple(lines), gates)
    return Headline("Speed", wording.ratio(first.ratio), "faster", tuple(lines), gates)


def _size(report: Report) -> Headline:
    gates = _gates(report, SIZE)
    sizes = [facts.size_bytes for facts in (report.exported, report.optimized) if facts is not None]
    if report.exported is None or report.optimized is None or not all(sizes):
        return Headline("Size", wording.ABSENT, "not measured", (), gates)
    before, after = report.exported.size_bytes, report.optimized.size_bytes
    lines = [f"{wording.size(before)} → {wording.size(after)} ONNX with its weights"]
    original, optimized = contender(report, "original"), contender(report, "optimized")
    if original and optimized and original.peak_memory_bytes and optimized.peak_memory_bytes:
        lines.append(
            f"{wording.size(original.peak_memory_bytes)} → {wording.size(optimized.peak_memory_bytes)} peak memory"
        )
    if abs(before / after - 1) < 0.01:
        return Headline("Size", wording.ratio(before / after), "same size", tuple(lines), gates)
    if after > before:
        return Headline("Size", wording.ratio(after / before), "larger", tuple(lines), gates)
    return Headline("Size", wording.ratio(before / after), "smaller", tuple(lines), gates)


def _accuracy(report: Report) -> Headline:
    gates = tuple(gate for gate in report.gates if not _figure_of(gate.gate, SPEED + SIZE))
    final = final_accuracy(report)
    if final is None:
        return Headline("Accuracy", wording.ABSENT, "not measured", (), gates)
    if final.failures:
        return Headline("Accuracy", "unsound", "output", final.failures[:3], gates)
    cosine = worst(final, "cosine", low_is_bad=True)
    lines = []
    lowest = worst(final, "cosine_min", low_is_bad=True)
    if cosine is not None and lowest is not None:
        lines.append(f"{wording.likeness(lowest)} on the worst sample")
    for name, value in final.metrics.items():
        before = final.reference_metrics.get(name)
        was = f", was {wording.number(before, 4)}" if before is not None else ""
        lines.append(f"{name} {wording.number(value, 4)}{was}")
    for figure, title in (("top1_agreement", "same class"), ("neighbour_agreement", "same neighbour")):
        agreement = worst(final, figure, low_is_bad=True)
        if agreement is not None:
            lines.append(f"{wording.share(agreement)} {title}")
    if final.decisions:
        lines.append(flips(final))
    samples = max((output.samples for output in final.outputs), default=0)
    if samples:
        lines.append(f"{wording.count(samples, 'sample')} against the original")
    if cosine is None:
        error = worst(final, "relative_l2", low_is_bad=False)
        return Headline("Accuracy", wording.number(error), "relative error", tuple(lines), gates)
    return Headline("Accuracy", wording.likeness(cosine), "cosine", tuple(lines), gates)
