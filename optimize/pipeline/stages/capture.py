"""Step 4a: the source's model as ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimize import onnx_files
from optimize.engines.base import Progress
from optimize.pipeline import digests, model_facts, opening


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Export into `directory/model.onnx`; an ONNX source stays where it is and is only looked at."""
    from passes import saving

    recipe = opening.recipe_from(payload)
    captured = opening.source_from(payload).capture(progress)
    if recipe.source.kind == "onnx":
        path = (recipe.base / recipe.source.path).resolve()
        name = str(path)
    else:
        path, name = directory / "model.onnx", "model.onnx"
        progress("saving the exported model", 0, 1)
        saving.save(captured.model, path)
    known = payload["digests"]
    sha256, size = onnx_files.digest(path, lambda file: known.get(str(file.resolve())) or digests.of_file(file))
    return {
        "model": name,
        "sha256": sha256,
        "inputs": opening.specs_data(captured.inputs),
        "outputs": opening.specs_data(captured.outputs),
        "ranges": {axis: dataclasses.asdict(item) for axis, item in captured.ranges.items()},
        "exporter": captured.exporter,
        "notes": list(captured.notes),
        "checks": [dict(check) for check in captured.checks],
        "facts": model_facts.of(captured.model, size).model_dump(mode="json"),
    }
