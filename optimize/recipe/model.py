"""The recipe as types: one run as data. Frozen, closed; each field's description is its documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import JsonValue

from optimize.engines.base import PATH

SCHEMA_VERSION = 1

REFERENCE: dict[str, JsonValue] = {"format": "path-or-function"}
"""Marks a field that may be "file.py:function", which is a path too, "module:function", or a plain path."""


class Section(pydantic.BaseModel):
    """Base of every part of a recipe."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class AxisRangeSpec(Section):
    """The range of a dynamic axis."""

    minimum: int = pydantic.Field(ge=1, description="Smallest size the engine must take.")
    typical: int = pydantic.Field(ge=1, description="Size to tune for.")
    maximum: int = pydantic.Field(ge=1, description="Largest size the engine must take.")

    @pydantic.model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.minimum <= self.typical <= self.maximum:
            sizes = f"{self.minimum}, {self.typical}, {self.maximum}"
            raise ValueError(f"expected minimum ≤ typical ≤ maximum, got {sizes}")
        return self


class TorchSourceSpec(Section):
    """A Python function that builds a PyTorch module with example inputs."""

    kind: Literal["torch"] = "torch"
    factory: str = pydantic.Field(
        description='"package.module:function" or "file.py:function".', json_schema_extra=REFERENCE
    )
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict, description="Keyword arguments for it.")
    opset: int | None = pydantic.Field(default=None, ge=18, description="Opset to export at.")
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict, description="Axis ranges by name.")
    files: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Further files the factory reads; a change in one re-exports.",
        json_schema_extra=PATH,
    )


class ExportedProgramSourceSpec(Section):
    """A program saved by torch.export.save (.pt2)."""

    kind: Literal["exported_program"]
    path: str = pydantic.Field(description="The .pt2 file.", json_schema_extra=PATH)
    opset: int | None = pydantic.Field(default=None, ge=18, description="Opset to export at.")
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict, description="Axis ranges by name.")
    input_names: tuple[str, ...] = pydantic.Field(default=(), description="Names for the inputs, in order.")
    output_names: tuple[str, ...] = pydantic.Field(default=(), description="Names for the outputs, in order.")


class HuggingFaceSourceSpec(Section):
    """A folder in the Hugging Face layout (config.json, safetensors, tokenizer)."""

    kind: Literal["huggingface"]
    path: str = pydantic.Field(description="The folder; nothing is ever downloaded.", json_schema_extra=PATH)
    task: Literal["auto", "feature-extraction", "text-classification", "causal-lm", "image-classification"] = (
        pydantic.Field(default="auto", description="Which head to load; auto reads config.json.")
    )
    attention: Literal["sdpa", "eager"] = pydantic.Field(
        default="sdpa", description="Attention implementation to export."
    )
    opset: int | None = pydantic.Field(default=None, ge=18, description="Opset to export at.")
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict, description="Axis ranges by name.")


class OnnxSourceSpec(Section):
    """An ONNX file, external data beside it."""

    kind: Literal["onnx"]
    path: str = pydantic.Field(description="The .onnx file.", json_schema_extra=PATH)
    ranges: dict[str, AxisRangeSpec] = pydantic.Field(default_factory=dict, description="Axis ranges by name.")


SourceSpec = Annotated[
    TorchSourceSpec | ExportedProgramSourceSpec | HuggingFaceSourceSpec | OnnxSourceSpec,
    pydantic.Field(discriminator="kind"),
]


class DataSpec(Section):
    """Where samples come from."""

    data: str = pydantic.Field(
        description='"file.py:function" or "module:function" yielding {input: array}, a .npz file, a folder '
        'of .npz files, or "random".',
        json_schema_extra=REFERENCE,
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

    data: str = pydantic.Field(
        default="random",
        description="As under calibration; must not share a sample with it.",
        json_schema_extra=REFERENCE,
    )
    labels: str | None = pydantic.Field(
        default=None, description="Name of the array in each batch that holds class labels, not an input."
    )
    kind: Literal["auto", "classification", "embedding", "regression"] = pydantic.Field(
        default="auto", description="Which agreement to report beside the distances."
    )
    metric: str | None = pydantic.Field(
        default=None,
        description='"file.py:function" (outputs, labels) -> {name: value}; higher is better.',
        json_schema_extra=REFERENCE,
    )
    attribution: Literal["stages", "passes", "off"] = pydantic.Field(
        default="stages",
        description="Accuracy after every stage, after every pass too, or of the engine alone.",
    )
    throughput: ThroughputSpec | None = pydantic.Field(
        default_factory=ThroughputSpec, description="How speed is measured; null: not at all."
    )


class PassSpec(Section):
    """One pass with its options, checked against the pass's own fields, defaults written out."""

    name: str
    options: dict[str, Any] = {}


class Heading(Section):
    """The keys of a recipe that hold one value each."""

    schema_version: Literal[1] = pydantic.Field(
        default=1, description="Version of the recipe language; this one is 1."
    )
    name: str = pydantic.Field(description="Names the run and its output folder: letters, digits, '.', '_', '-'.")
    previous: str | None = pydantic.Field(
        default=None, description="An earlier report.json, for regression gates.", json_schema_extra=PATH
    )
    seed: int = pydantic.Field(default=0, ge=0, description="Seed of everything random.")
    output: str = pydantic.Field(
        default="out/{name}",
        description="Folder for the results, from the working folder; {name} stands for the name.",
    )

    @pydantic.field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"expected letters, digits, '.', '_' and '-' only, got '{name}'")
        return name


class Recipe(Heading):
    """One run as data.

    `base` is the folder that relative paths start from: the folder of the recipe file, or what its `base:`
    says. A path taken from an extended recipe in another folder is rewritten to start from here.
    """

    source: SourceSpec = pydantic.Field(description="Where the model comes from.")
    target: str = pydantic.Field(default="cpu", description="The device to optimise for.")
    passes: tuple[PassSpec, ...] = pydantic.Field(default=(), description="Graph passes, in order.")
    engine: dict[str, Any] = pydantic.Field(
        default_factory=lambda: {"kind": "onnxruntime"}, description="What runs the optimised model."
    )
    calibration: DataSpec | None = pydantic.Field(
        default=None, description="Samples that calibrating passes learn ranges from."
    )
    evaluate: EvaluateSpec = pydantic.Field(
        default=EvaluateSpec(), description="What accuracy and speed are measured on."
    )
    gates: dict[str, float] = pydantic.Field(default={}, description="Limits that the run must hold.")
    base: Path = pydantic.Field(default=Path("."), exclude=True)
