"""Step 7: an engine from an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimize.engines.base import BuildRequest, Progress
from optimize.pipeline import batches, opening


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Build `payload["model"]` with the recipe's engine into `directory/engine`."""
    engine = opening.engine_of(opening.recipe_from(payload))
    into = directory / "engine"
    into.mkdir()
    artifact = engine.build(
        BuildRequest(
            model=Path(payload["model"]),
            directory=into,
            ranges=opening.ranges_of(payload["ranges"]),
            cache=Path(payload["cache"]) if payload.get("cache") else None,
            sample=next(iter(batches.read(Path(payload["feeds"]) / "evaluation")), None),
        ),
        progress,
    )
    return {
        "path": str(artifact.path.relative_to(directory)),
        "kind": artifact.kind,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "made_by": artifact.made_by,
        "details": dict(artifact.details),
    }
