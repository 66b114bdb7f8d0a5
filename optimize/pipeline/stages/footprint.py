"""Peak memory of one contender, loaded and run alone in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimize.engines.base import Progress
from optimize.pipeline.stages import throughput

RUNS = 3


def run(payload: Mapping[str, Any], directory: Path, progress: Progress) -> dict[str, Any]:
    """Open `payload["contender"]`, run it a few times; peak resident bytes of the whole process."""
    from optimize.evaluate import memory

    feeds = throughput.timing_feeds(payload)
    with throughput.open_contender(payload, payload["contender"], payload["path"]) as session:
        for done in range(RUNS):
            progress(f"memory of {payload['contender']}", done, RUNS)
            session.run(feeds)
    return {"peak_memory_bytes": memory.peak_of_current_process()}
