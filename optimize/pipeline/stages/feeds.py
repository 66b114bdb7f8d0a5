"""Step 3: calibration and evaluation data as batches on disk; refused when they share a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.base import Progress
from optimize.errors import UsageError
from optimize.pipeline import batches, opening
from optimize.recipe.model import DataSpec, Recipe


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Write `calibration/` (when the recipe has calibration data) and `evaluation/`.

    Raises:
        UsageError: When data does not fit the model's inputs, or both sets share a sample.
    """
    recipe = opening.recipe_from(payload)
    checked_by = {
        "inputs": opening.specs_of(payload["inputs"]),
        "ranges": opening.ranges_of(payload["ranges"]),
        "limits": _limits(payload, recipe),
        "allow_pickle": payload["allow_pickle"],
    }
    facts: dict[str, Any] = {"calibration": None}
    shared: set[str] = set()
    if recipe.calibration is not None:
        facts["calibration"], shared = _store(
            recipe, recipe.calibration, None, checked_by, directory / "calibration", progress
        )
    facts["evaluation"], evaluated = _store(
        recipe, recipe.evaluate, recipe.evaluate.labels, checked_by, directory / "evaluation", progress
    )
    common = shared & evaluated
    if common:
        raise UsageError(
            f"calibration and evaluation data share {len(common)} of {len(evaluated)} samples; "
            "accuracy measured on calibration data says nothing.",
            hint="Use disjoint splits.",
        )
    return facts


def _store(
    recipe: Recipe,
    spec: DataSpec,
    labels: str | None,
    checked_by: Mapping[str, Any],
    into: Path,
    progress: Progress,
) -> tuple[dict[str, Any], set[str]]:
    from optimize.evaluate import feeds

    what = into.name
    digest = feeds.Digest()

    def stored() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        loaded = feeds.load_batches(
            spec.data,
            samples=spec.samples,
            batch=spec.batch,
            arguments=spec.arguments,
            base=recipe.base,
            labels=labels,
            seed=recipe.seed if what == "calibration" else recipe.seed + 1,
            **checked_by,
        )
        for item in loaded:
            digest.add(item)
            progress(f"reading {what} data", len(digest.samples), spec.samples or 0)
            arrays = dict(item.feeds)
            if item.labels is not None:
                arrays[batches.LABELS] = item.labels
            yield arrays

    count = batches.write(into, stored())
    samples = len(digest.samples)
    if not samples:
        raise UsageError(f"{what}: '{spec.data}' holds no samples.", hint="Point `data` at something that does.")
    facts = {"data": spec.data, "samples": samples, "batches": count, "sha256": digest.hexdigest()}
    return facts, set(digest.samples)


def _limits(payload: Mapping[str, Any], recipe: Recipe) -> Mapping[str, int] | None:
    """How large random whole numbers may be, read off the graph; None when nothing is random."""
    specs = [recipe.evaluate, *([recipe.calibration] if recipe.calibration else [])]
    if all(spec.data != "random" for spec in specs):
        return None
    import onnx_ir as ir

    from optimize.evaluate import index_limits

    return index_limits.index_limits(ir.load(payload["model"]))
