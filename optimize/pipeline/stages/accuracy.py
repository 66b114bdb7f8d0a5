"""Step 8: exported model, optimised model and engine against the original, on the same feeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimize.engines.base import Progress
from optimize.pipeline import comparing, opening


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Compare each stage named in `payload["compare"]`: {"export": path, "model": path, "engine": path | None}."""
    recipe = opening.recipe_from(payload)
    wanted = payload["compare"]
    results = []
    for stage in ("export", "model"):
        if wanted.get(stage):
            results.append(comparing.compare_onnx(Path(wanted[stage]), stage, payload, progress))
    if wanted.get("engine"):
        engine = opening.engine_of(recipe)
        with engine.open(Path(wanted["engine"])) as session:
            results.append(comparing.compare(session, "engine", payload, progress))
    return {"accuracy": [result.model_dump(mode="json") for result in results]}
