"""The steps of a run, one file each: `run(payload, directory, progress)` writes files and returns facts."""

from __future__ import annotations

import dataclasses

_GRAPH = ("onnx", "onnx-ir", "onnxscript", "numpy", "ml_dtypes", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the pipeline knows of a step before running it.

    Attributes:
        module: File under `optimize/pipeline/stages/`.
        runs_user_code: Whether it imports the user's Python; files that such code reads are then watched.
        libraries: Distributions whose versions are part of its key.
    """

    module: str
    runs_user_code: bool
    libraries: tuple[str, ...] = _GRAPH


STAGES = {
    "capture": Stage("capture", True, (*_GRAPH, "torch", "transformers")),
    "feeds": Stage("feeds", True, ("numpy",)),
    "reference": Stage("reference", True, ("torch", "transformers", "onnxruntime", "numpy")),
    "learn": Stage("learn", True, (*_GRAPH, "torch", "transformers", "nvidia-modelopt")),
    "passes": Stage("transform", False, (*_GRAPH, "nvidia-modelopt")),
    "build baseline": Stage("build", False, ("onnxruntime", "onnx", "tensorrt", "tensorrt-rtx")),
    "build": Stage("build", False, ("onnxruntime", "onnx", "tensorrt", "tensorrt-rtx")),
    "accuracy": Stage("accuracy", True, _GRAPH),
    "throughput": Stage("throughput", True, ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx")),
    "footprint": Stage("footprint", True, ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx")),
    "blame": Stage("blame", True, (*_GRAPH, "nvidia-modelopt")),
}
"""Every step that runs in a process of its own, in the order of a run."""
