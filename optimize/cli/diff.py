"""`optimize diff`: two models or engines on the same inputs, or two reports; this release against the last."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from optimize import console
from optimize.errors import GATE_FAILED, PASSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimize.differences import Difference
    from optimize.engines.base import Session
    from optimize.evaluate.diff_models import Side
    from optimize.facts import GateResult

Kind = Literal["auto", "classification", "embedding", "regression"]

AXIS_SIZE = 8
"""Size of a dynamic axis that nothing is said about."""


def diff(
    before: Annotated[Path, typer.Argument(help="A model, an engine, a report.json or a run's folder.")],
    after: Annotated[Path, typer.Argument(help="The same of the newer one.")],
    data: Annotated[
        str | None, typer.Option(help="Inputs for two models: .npz, a folder of them, a function; else random.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Name of the array of labels in the data.")] = None,
    kind: Annotated[Kind, typer.Option(help="What the outputs are.")] = "auto",
    samples: Annotated[int | None, typer.Option(help="Samples to compare on; 32 when random.", min=1)] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="AXIS=N", help="Size of a dynamic axis; 8 if absent.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of each model; 0 leaves timing out.", min=0)] = 60,
    seconds: Annotated[float, typer.Option(help="Stop timing after this long.", min=0.1)] = 30.0,
    threads: Annotated[int | None, typer.Option(help="Threads of each; all cores if absent.", min=1)] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="FIGURE.max=LIMIT",
            help="Fail when it does not hold: regression.latency.max=3%, accuracy.cosine.min=0.99.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="For a pull-request comment.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file too.")] = None,
) -> int:
    """Compare accuracy, speed, size, operators and layer formats; exit code 1 when a gate does not hold."""
    from optimize.evaluate import changes
    from optimize.evaluate import gates as judging
    from optimize.report import difference as views

    limits = _limits(gates)
    if _is_report(before) and _is_report(after):
        found = _reports(before, after)
    else:
        found = _models(
            before, after, data, labels, kind, samples, sizes, runs=runs, seconds=seconds, threads=threads
        )
    verdicts = judging.judge(limits, changes.regressions(found))
    if html is not None:
        html.write_text(views.page(found, verdicts), encoding="utf-8")
    if as_json:
        console.out_json(
            {**found.model_dump(mode="json"), "verdicts": [item.model_dump(mode="json") for item in verdicts]}
        )
    else:
        console.out(views.markdown(found, verdicts) if as_markdown else views.text(found, verdicts))
    return _exit_code(found, verdicts)


def _exit_code(found: Difference, verdicts: Sequence[GateResult]) -> int:
    return GATE_FAILED if found.failures or not all(item.passed for item in verdicts) else PASSED


def _limits(given: Sequence[str] | None) -> dict[str, float]:
    from optimize.errors import UsageError
    from optimize.figures import parse_limit, split_gate, unreachable

    limits: dict[str, float] = {}
    for item in given or ():
        gate, equals, limit = item.partition("=")
        if not equals:
            raise UsageError(f"--gate: expected FIGURE.max=LIMIT, got '{item}'.")
        try:
            limits[gate] = parse_limit(limit, split_gate(gate)[2].unit)
        except ValueError as error:
            raise UsageError(f"--gate {item}: {error}.") from error
        if why := unreachable(gate, limits[gate]):
            raise UsageError(f"--gate {item}: {why}.")
    return limits


def _is_report(path: Path) -> bool:
    from optimize.cli.models import is_model
    from optimize.errors import UsageError

    if not path.exists():
        raise UsageError(f"there is no file '{path}'.")
    if path.is_dir():
        if not (path / "report.json").is_file():
            raise UsageError(f"the folder '{path}' holds no report.json.", hint="Name a model file in it.")
        return True
    if not is_model(path) and path.suffix != ".json":
        raise UsageError(f"'{path}' is no model (.onnx, .ort, .plan) and no report (.json).")
    return path.suffix == ".json"


def _reports(before: Path, after: Path) -> Difference:
    from optimize.evaluate import diff_reports, earlier

    loaded = [earlier.load(path) for path in (before, after)]
    return diff_reports.compare_reports(loaded[0], loaded[1], (str(before), str(after)))


def _models(
    before: Path,
    after: Path,
    data: str | None,
    labels: str | None,
    kind: Kind,
    samples: int | None,
    sizes: Sequence[str] | None,
    *,
    runs: int,
    seconds: float,
    threads: int | None,
) -> Difference:
    from optimize.cli import models
    from optimize.cli.progress import StepProgress
    from optimize.errors import UsageError
    from optimize.evaluate import diff_models

    if _is_report(before) or _is_report(after):
        raise UsageError("a report can only be compared with a report.", hint="Name two models or two reports.")
    progress = StepProgress()
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(models.open_model(path, threads)) for path in (before, after)]
        batches = models.batches_for(
            before,
            sessions[0].inputs,
            data=data,
            labels=labels,
            samples=samples or (32 if data is None else None),
            sizes=models.sizes_of(sizes),
            absent=AXIS_SIZE,
        )
        left, right = (_side(path, session) for path, session in zip((before, after), sessions, strict=True))
        found = diff_models.compare_models(
            left,
            right,
            ((batch.feeds, batch.labels) for batch in batches),
            kind=kind,
            runs=runs,
            seconds=seconds,
            threads=threads,
            progress=progress,
        )
    progress.clear()
    return found


def _side(path: Path, session: Session) -> Side:
    from optimize.evaluate.diff_models import Side

    if path.suffix != ".onnx":
        return Side(str(path), session)
    from optimize import onnx_files
    from optimize.pipeline import layer_facts, model_facts
    from optimize.sources import onnx_load

    model = onnx_load.load_onnx(path)
    size = sum(item.stat().st_size for item in onnx_files.files_of(path))
    return Side(str(path), session, model_facts.of(model, size), layer_facts.of(model))
