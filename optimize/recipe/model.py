"""The recipe as types: one run as data. Frozen, closed; each field's description is its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

SCHEMA_VERSION = 1


class Section(pydantic.BaseModel):
    """Base of every part of a recipe."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class AxisRangeSpec(Section):
    """The range of a dynamic axis."""

    minimum: int = pydantic.Field(ge=1, description="Smallest size the engine must take.")
    typical: int = pydantic.Field(ge=1, description="Size to tune for.")
    maximum: int = pydantic.Field(ge=1, description="Largest size the engine must take.")


class TorchSourceSpec(Section):
    """A Python function that builds a PyTorch module with example inputs."""

    kind: Literal["torch"] = "torch"
    factory: str = pydantic.Field(description='"package.module:function" or "file.py:function".')
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict, description="Keyword arguments for it.")
    opset: int | None = pydantic.Field(default=None, ge=18, description="Opset to export at.")
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict, description="Axis ranges by name.")
    files: tuple[str, ...] = pydantic.Field(
        default=(), description="Further files the factory reads; a change in one re-exports."
    )


class ExportedProgramSourceSpec(Section):
    """A program saved by torch.export.save (.pt2)."""

    kind: Literal["exported_program"]
    path: str
    opset: int | None = pydantic.Field(default=None, ge=18)
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict)
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


class HuggingFaceSourceSpec(Section):
    """A folder in the Hugging Face layout (config.json, safetensors, tokenizer)."""

    kind: Literal["huggingface"]
    path: str = pydantic.Field(description="The folder; nothing is ever downloaded.")
    task: Literal["auto", "feature-extraction", "text-classification", "causal-lm", "image-classification"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    opset: int | None = pydantic.Field(default=None, ge=18)
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict)


class OnnxSourceSpec(Section):
    """An ONNX file, external data beside it."""

    kind: Literal["onnx"]
    path: str
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict)


SourceSpec = Annotated[
    TorchSourceSpec | ExportedProgramSourceSpec | HuggingFaceSourceSpec | OnnxSourceSpec,
    pydantic.Field(discriminator="kind"),
]


class DataSpec(Section):
    """Where samples come from."""

    data: str = pydantic.Field(
        description='"file.py:function" or "module:function" yielding {input: array}, a .npz file, a folder '
        'of .npz files, or "random".'
    )
    samples: int | None = pydantic.Field(default=None, ge=1, description="How many samples to take; all if absent.")
    batch: int = pydantic.Field(default=8, ge=1, description="Samples per batch when the data comes one by one.")
    arguments: dict[str, Any] = pydantic.Field(
        default_factory=dict, description="Keyword arguments for a function."
    )


class ThroughputSpec(Section):
    """How speed is measured."""

    shapes: dict[str, int] = pydantic.Field(
        default_factory=dict,
        description="Size per named axis for timing, {batch: 8, tokens: 128}; typical if absent.",
    )
    runs: int = pydantic.Field(default=60, ge=5, description="Timed runs per contender, in turns.")
    seconds: float = pydantic.Field(default=60.0, gt=0, description="Stop after this long, whatever the runs.")
    threads: int | None = pydantic.Field(
        default=None, ge=1, description="Threads per contender; all cores if absent."
    )
    contenders: tuple[Literal["original", "compiled", "exported", "optimized"], ...] = (
        "original",
        "exported",
        "optimized",
    )


class EvaluateSpec(DataSpec):
    """What the original and the optimised engine are compared on."""

    data: str = "random"
    labels: str | None = pydantic.Field(
        default=None, description="Name of the array in each batch that holds class labels, not an input."
    )
    kind: Literal["auto", "classification", "embedding", "regression"] = pydantic.Field(
        default="auto", description="Which agreement to report beside the distances."
    )
    metric: str | None = pydantic.Field(
        default=None,
        description='"file.py:function" (outputs, labels) -> {name: value}; higher is better.',
    )
    attribution: Literal["stages", "passes", "off"] = pydantic.Field(
        default="stages",
        description="Accuracy after every stage, after every pass too, or of the engine alone.",
    )
    throughput: ThroughputSpec | None = pydantic.Field(
        default_factory=ThroughputSpec, description="How speed is measured; null: not at all."
    )


class PassSpec(Section):
    """One pass with its options, checked against the pass's own fields."""

    name: str
    options: dict[str, Any] = {}


class Recipe(Section):
    """One run as data.

    `base` is the folder that relative paths start from: the folder of the file that names them.
    """

    schema_version: Literal[1] = 1
    name: str
    source: SourceSpec
    target: str = "cpu"
    passes: tuple[PassSpec, ...] = ()
    engine: dict[str, Any] = pydantic.Field(default_factory=lambda: {"kind": "onnxruntime"})
    calibration: DataSpec | None = None
    evaluate: EvaluateSpec = EvaluateSpec()
    gates: dict[str, float] = {}
    previous: str | None = pydantic.Field(default=None, description="An earlier report.json, for regression gates.")
    seed: int = 0
    output: str = pydantic.Field(
        default="out/{name}", description="Folder for the results, from the working folder."
    )
    base: Path = pydantic.Field(default=Path("."), exclude=True)
