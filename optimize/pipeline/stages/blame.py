"""Where accuracy went: the worst inner values of the optimised graph, matched by source module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optimize.engines.base import Progress
from optimize.pipeline import batches, comparing, opening

BATCHES = 2


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Compare inner values of `payload["exported"]` and `payload["optimized"]` on a few evaluation batches."""
    from optimize.engines.graph_runner import GraphRunner
    from optimize.evaluate import attribution

    recipe = opening.recipe_from(payload)
    feeds = list(itertools.islice(batches.read(Path(payload["feeds"]) / "evaluation"), BATCHES))
    tensors = attribution.compare_tensors(
        ir.load(payload["exported"]),
        comparing.simulated(ir.load(payload["optimized"])),
        feeds,
        GraphRunner(threads=None, scratch=directory),
        progress=progress,
    )
    lossy = [spec.name for spec in recipe.passes if spec.name.startswith(("quantize.", "cast."))]
    return {
        "tensors": [item.model_dump(mode="json") for item in tensors[:20]],
        "remedy": attribution.remedy(tensors, lossy),
    }
