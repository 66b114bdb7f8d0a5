"""Step 4b: the original's outputs on the evaluation feeds, which everything later is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.base import Progress
from optimize.errors import StageFailed
from optimize.pipeline import batches, opening


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Write `reference/NNNNN.npz`, one per evaluation batch.

    Raises:
        StageFailed: When the original's outputs cannot serve as a reference.
    """
    from optimize.evaluate import plausible

    feeds = Path(payload["feeds"]) / "evaluation"
    total = batches.count(feeds)
    with opening.source_from(payload).original() as session:

        def outputs() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
            for done, batch in enumerate(batches.read(feeds)):
                progress("running the original", done, total)
                yield session.run(batch)

        batches.write(directory / "reference", outputs())
    problem = plausible.implausible(zip(batches.read(directory / "reference"), batches.labels(feeds), strict=True))
    if problem:
        raise StageFailed(f"the original model is no sound reference: {problem}")
    return {"batches": total}
