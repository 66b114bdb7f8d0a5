"""Build one engine and try it, in a process of its own: a crash in a library ends this variant alone.

python build_one.py JOB.json      # writes RESULT.json and outputs.npz beside it
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.base import BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import TensorRTOptions


def main(job_path: Path) -> None:
    """Run the job: optimise, build, open, run once."""
    job: dict[str, Any] = json.loads(job_path.read_text())
    folder = job_path.parent
    started = time.monotonic()
    model = Path(job["model"])
    lines: list[str] = []
    if job["steps"]:
        model, lines = optimise(job, folder)
    passes_s = time.monotonic() - started
    engine = TensorRTEngine(TensorRTOptions.model_validate(job["options"]))
    into = folder / "engine"
    into.mkdir()
    started = time.monotonic()
    artifact = engine.build(BuildRequest(model, into), lambda what, done, total: None)
    build_s = time.monotonic() - started
    with np.load(job["feeds"]) as archive:
        feeds = {name: archive[name] for name in archive.files}
    result: dict[str, Any] = {
        "passes": lines,
        "passes_s": passes_s,
        "build_s": build_s,
        "plan": str(artifact.path),
        "plan_bytes": artifact.size_bytes,
        "summary": artifact.details["summary"],
        "notes": artifact.details["notes"],
        "layer_count": len(artifact.details["layers"]),
    }
    with engine.open(artifact.path) as session:
        np.savez(folder / "outputs.npz", allow_pickle=False, **session.run(feeds))
        write(folder, result)
        result["alone_ms"] = float(np.median(session.timings(feeds, runs=50).compute_ms))
        write(folder, result)
        times = session.layer_times(feeds, runs=5)
        result["slowest_layers_ms"] = dict(sorted(times.items(), key=lambda item: -item[1])[:12])
        result["kinds_of_layers_ms"] = by_kind(times)
        write(folder, result)


def by_kind(times: Mapping[str, float]) -> dict[str, float]:
    """Layer times summed over layers whose names differ in numbers alone, the largest first: a block's profile."""
    sums: dict[str, float] = {}
    for name, milliseconds in times.items():
        kind = re.sub(r"\d+", "#", re.sub(r"_myl\d+_\d+$", "", name))
        sums[kind] = sums.get(kind, 0.0) + milliseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1])[:20])


def write(folder: Path, result: dict[str, Any]) -> None:
    """Keep what is known so far: the steps after it may crash."""
    (folder / "RESULT.json").write_text(json.dumps(result, indent=2))


def optimise(job: dict[str, Any], folder: Path) -> tuple[Path, list[str]]:
    """Apply the variant's passes; returns the new file and what they did."""
    import onnx_ir as ir
    from variants import Variant, apply

    from passes.saving import save
    from passes.target import Target

    loaded = ir.load(job["model"])
    variant = Variant("", tuple((name, options) for name, options in job["steps"]))
    lines = apply(variant, loaded, Target.model_validate(job["target"]), str(folder))
    path = folder / "model.onnx"
    save(loaded, path)
    return path, lines


if __name__ == "__main__":
    main(Path(sys.argv[1]))
