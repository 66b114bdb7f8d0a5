"""Step 2: can it run here? Nothing of the model is touched and no user code runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from optimize.errors import BackendMissing, OptimizeError, StageFailed, UsageError
from optimize.evaluate import earlier
from optimize.pipeline import estimate, opening, room
from optimize.recipe.model import DataSpec, Recipe, TorchSourceSpec
from optimize.sources.base import Source
from optimize.targets import loading
from passes import registry
from passes.target import Target

ROOM = 3
"""A run writes about this many times the model's size: export, optimised model, two engines, less sharing."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        target: The device as the engine uses it.
        steps: One line per step, in order.
        problems: Why it cannot run here; empty when it can.
        needs_calibration: Whether any pass needs calibration data.
        estimate: Time, memory and disk of each step; None for small models and those that code makes.
    """

    target: Target
    steps: tuple[str, ...]
    problems: tuple[OptimizeError, ...]
    needs_calibration: bool
    estimate: estimate.Estimate | None = None


def plan(
    recipe: Recipe,
    store: Path | None = None,
    *,
    allow_pickle: bool = False,
    output: Path | None = None,
    until: Literal["passes", "build"] | None = None,
) -> Plan:
    """What `recipe` will do here, and what stands in the way.

    Args:
        recipe: The run.
        store: Folder of the store; None: needs of time, memory and disk are not looked at.
        allow_pickle: Whether files that run code when loaded may be loaded.
        output: Folder of the results; None: the recipe's own.
        until: Where the run stops.
    """
    target = loading.load(recipe.target, recipe.engine["kind"])
    problems: list[OptimizeError] = []
    source = opening.source_of(recipe, allow_pickle=allow_pickle)
    if problem := source.check():
        problems.append(_source_problem(recipe, source, problem))
    if problem := _engine_problem(recipe, until):
        problems.append(BackendMissing(problem))
    needs_calibration = False
    lines = [f"capture     {_source_line(recipe)}"]
    for spec in (recipe.calibration, recipe.evaluate):
        if spec is not None and (problem := data_problem(spec, recipe.base)):
            problems.append(UsageError(problem))
    lines.append(
        f"feeds       calibration: {_data_line(recipe.calibration)}; evaluation: {_data_line(recipe.evaluate)}"
    )
    if recipe.previous is not None and until is None:
        try:
            earlier.parts(earlier.load(recipe.base / recipe.previous))
        except UsageError as error:
            problems.append(error)
    lines.append("reference   outputs of the original on the evaluation data")
    for item in recipe.passes:
        built = registry.find(item.name)(**item.options)
        needs_calibration |= built.requires_calibration()
        if absent := built.missing():
            problems.append(BackendMissing(f"{item.name}: {absent}"))
        if built.lesson() is not None and not hasattr(source, "torch_model"):
            problems.append(
                UsageError(
                    f"{item.name}: a source of kind '{source.kind}' has no module to learn from.",
                    hint="Use a source of kind torch or huggingface.",
                )
            )
        refusal = built.check(target)
        if refusal:
            problems.append(UsageError(f"{item.name}: {refusal}"))
        options = ", ".join(f"{key}={value}" for key, value in item.options.items())
        lines.append(f"pass        {item.name}{f' ({options})' if options else ''}")
    if needs_calibration and recipe.calibration is None:
        problems.append(
            UsageError("a pass needs calibration data.", hint="Add `calibration: {data: …}` to the recipe.")
        )
    lines.append(f"build       {recipe.engine['kind']} for {target.title}, baseline and optimised")
    lines.append("accuracy    export, optimised model and engine against the original")
    if recipe.evaluate.throughput is not None:
        lines.append(f"throughput  {', '.join(recipe.evaluate.throughput.contenders)} in turns")
    lines.append(f"gates       {', '.join(f'{gate} {limit:g}' for gate, limit in recipe.gates.items()) or 'none'}")
    needs = None
    if store is not None and not problems:
        files = source.files()
        needs = estimate.estimate(recipe, files, target, store, until)
        if needs is not None:
            lines += estimate.lines(needs)
            problems += estimate.problems(
                needs, store, output or Path(recipe.output.replace("{name}", recipe.name))
            )
        elif problem := disk_problem(files, store):
            problems.append(StageFailed(problem))
    return Plan(target, tuple(lines), tuple(problems), needs_calibration, needs)


def _engine_problem(recipe: Recipe, until: Literal["passes", "build"] | None) -> str | None:
    """Why the engine cannot be built here or, where the run goes on to open it, cannot run; or None."""
    searches = any(item.name == "quantize.auto" for item in recipe.passes)  # it times what it builds
    if until == "passes" and not searches:
        return None
    engine = opening.engine_of(recipe)
    if problem := engine.check():
        return problem
    if until == "build" and not searches:
        return None
    problem = engine.check_run()
    return f"{problem} Or stop after the build, with --until build." if problem and not searches else problem


def disk_problem(files: tuple[Path, ...], store: Path) -> str | None:
    """Why the store's disk is too small for a model of these files, or None."""
    size = sum(path.stat().st_size for path in files if path.is_file())
    free = room.disk_bytes(store)
    if size * ROOM > free:
        return (
            f"the store '{store}' has {free / 1e9:.1f} GB free; a model of {size / 1e9:.1f} GB needs about "
            f"{size * ROOM / 1e9:.1f} GB. Choose another disk with --store."
        )
    return None


def data_problem(spec: DataSpec, base: Path) -> str | None:
    """Why data cannot be found, looking at file names only, or None."""
    path = data_file(spec.data, base)
    if path is not None and not path.exists():
        return f"data '{spec.data}': there is no file '{path}'."
    return None


def data_file(data: str, base: Path) -> Path | None:
    """The file or folder that `data` names; None for an installed module's function and for "random"."""
    if data == "random":
        return None
    name, colon, function = data.rpartition(":")
    if colon and function.isidentifier():
        return (base / name) if name.endswith(".py") or "/" in name else None
    return base / data


def _source_problem(recipe: Recipe, source: Source, problem: str) -> OptimizeError:
    """The source's complaint with its kind: the files' fault, or a library that is not installed."""
    try:
        source.files()
    except OptimizeError as error:
        return error
    return UsageError(problem) if _is_missing_file(recipe) else BackendMissing(problem)


def _is_missing_file(recipe: Recipe) -> bool:
    spec = recipe.source
    name = spec.factory.rpartition(":")[0] if isinstance(spec, TorchSourceSpec) else spec.path
    is_file = not isinstance(spec, TorchSourceSpec) or name.endswith(".py")
    return is_file and not (recipe.base / name).exists()


def _source_line(recipe: Recipe) -> str:
    spec: Any = recipe.source
    return f"{spec.kind}: {getattr(spec, 'factory', None) or spec.path}"


def _data_line(spec: DataSpec | None) -> str:
    if spec is None:
        return "none"
    return f"{spec.data}{f' ({spec.samples} samples)' if spec.samples else ''}"
