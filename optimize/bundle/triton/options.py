"""How a model is to be served."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from optimize.errors import UsageError

Backend = Literal["auto", "onnxruntime", "tensorrt", "python"]


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """Choices that the run itself does not make.

    Attributes:
        name: The model's name on the server; the run's name if None.
        version: Version number; servers serve the highest.
        versions_kept: How many of the newest versions are served at once; with 1 a server drops the old version
            once the new one is loaded and requests in flight are answered. None: as the repository says
            already, and 1 in a new one.
        backend: "python" is self-contained (ONNX Runtime inside Triton's Python backend).
        instances: Copies of the model that run at the same time.
        max_batch: Largest batch; the largest that the engine was built for if None.
        preferred_batches: Batch sizes worth waiting for; see `optimize.bundle.triton.batching`.
        queue_delay_us: The longest a request waits for others, in microseconds.
        tokenizer: A tokenizer.json; then an ensemble that takes text is written too.
        pooling: "mean" adds a step that averages token vectors over the attention mask and normalises them; for
            models whose first output is (batch, tokens, width).
        pad_to: The tokenizer pads to a multiple of this: requests of like length then have the same shape, and only
            requests of the same shape share a batch.
    """

    name: str | None = None
    version: int = 1
    versions_kept: int | None = None
    backend: Backend = "auto"
    instances: int = 1
    max_batch: int | None = None
    preferred_batches: tuple[int, ...] = ()
    queue_delay_us: int = 0
    tokenizer: Path | None = None
    pooling: Literal["none", "mean"] = "none"
    pad_to: int = 16

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", self.name):
            raise UsageError(f"serving name '{self.name}': letters, digits, '_', '-' and '.' only.")
        for field in ("version", "versions_kept", "instances", "pad_to"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UsageError(f"{field}: expected 1 or more, got {value}.")
        if self.pooling != "none" and self.tokenizer is None:
            raise UsageError("pooling needs the attention mask of a tokenizer; name a tokenizer.json, too.")


def model_name(options: ServingOptions, run_name: str) -> str:
    """The model's name: a folder's name that every client can spell."""
    return options.name or re.sub(r"[^A-Za-z0-9_.-]+", "_", run_name).strip("._-") or "model"
