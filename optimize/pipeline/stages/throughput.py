"""Step 9: original, exported model and optimised engine timed in turns, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optimize.engines.base import Progress, Session
from optimize.facts import Roofline, ThroughputResult
from optimize.pipeline import batches, opening
from passes.target import Target


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Time the contenders that `payload["contenders"]` names: {"original": None, "exported": path, ...}."""
    from optimize.evaluate import energy, throughput

    recipe = opening.recipe_from(payload)
    spec = recipe.evaluate.throughput
    assert spec is not None
    feeds = timing_feeds(payload)
    device = payload["target"]["device"]
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for contender, path in payload["contenders"].items():
            progress(f"loading {contender}", 0, 0)
            sessions[contender] = stack.enter_context(open_contender(payload, contender, path, device=device))
        meters, missing = energy.meters(device)
        result = throughput.measure(
            sessions,
            feeds,
            runs=spec.runs,
            seconds=spec.seconds,
            threads=spec.threads,
            seed=recipe.seed,
            progress=progress,
            devices={name: _device(session, name, device) for name, session in sessions.items()},
            meters=meters,
            energy_missing=missing,
        )
    floor = _floor(payload, result)
    return {
        "throughput": result.model_dump(mode="json"),
        "roofline": floor.model_dump(mode="json") if floor else None,
    }


def _floor(payload: Mapping[str, Any], result: ThroughputResult) -> Roofline | None:
    """The best latency the target allows for the shapes that were timed."""
    import onnx_ir as ir

    from optimize.evaluate import processor_rates, roofline

    sizes = {
        axis: result.shapes[spec.name][place]
        for spec in opening.specs_of(payload["inputs"])
        for place, axis in enumerate(spec.shape)
        if isinstance(axis, str)
    }
    models = (ir.load(payload["exported"]), ir.load(payload["optimized"]))
    target = processor_rates.with_rates(Target.model_validate(payload["target"]), result.threads)
    return roofline.estimate(*models, target, sizes)


def _device(session: Session, contender: str, device: str) -> str:
    """The target's device, except for an original that cannot run there."""
    if contender not in ("original", "compiled"):
        return device
    return "cuda" if any("cuda" in place for place in session.placement()) else "cpu"


def open_contender(
    payload: Mapping[str, Any], contender: str, path: str | None, *, device: Literal["cpu", "cuda"] = "cpu"
) -> Session:
    """The original through its source (eager or compiled) on `device`, else through the recipe's engine."""
    recipe = opening.recipe_from(payload)
    threads = recipe.evaluate.throughput.threads if recipe.evaluate.throughput else None
    if contender in ("original", "compiled"):
        return opening.source_from(payload).original(
            threads=threads, compiled=contender == "compiled", device=device
        )
    assert path is not None
    is_open = "threads" in recipe.engine and recipe.engine["threads"] is None
    changes = {"threads": threads} if threads is not None and is_open else {}
    return opening.engine_of(recipe, **changes).open(Path(path))


def timing_feeds(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The first evaluation batch brought to the shapes that the recipe times."""
    recipe = opening.recipe_from(payload)
    assert recipe.evaluate.throughput is not None
    first = next(iter(batches.read(Path(payload["feeds"]) / "evaluation")))
    specs = opening.specs_of(payload["inputs"])
    sizes = recipe.evaluate.throughput.shapes or {
        axis: item.typical for axis, item in opening.ranges_of(payload["ranges"]).items()
    }
    return batches.resized(first, specs, sizes)
