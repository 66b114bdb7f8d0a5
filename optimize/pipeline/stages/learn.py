"""Step 4c: what another tool learns from a copy of the source's own module, for a pass that asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimize.engines.base import Progress
from optimize.errors import UsageError
from optimize.pipeline import batches, opening
from passes import lessons

FILE = "lessons.npz"


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Write `directory/lessons.npz`.

    Raises:
        UsageError: When the source has no module.
    """
    from optimize.sources import modelopt_learning

    source = opening.source_from(payload)
    if not hasattr(source, "torch_model"):
        raise UsageError(f"a source of kind '{source.kind}' has no module that ModelOpt could calibrate.")
    feeds = Path(payload["feeds"]) / "calibration"
    learned = modelopt_learning.learn(
        source.torch_model(), payload["asked"], lambda: batches.read(feeds), batches.count(feeds), progress
    )
    lessons.write(learned, directory / FILE)
    return {"file": FILE, "layers": lessons.tidy(learned.layers)}
