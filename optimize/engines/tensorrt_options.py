"""The options of the TensorRT engine: the keys under `engine:` in a recipe, by the builder's own names."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import pydantic

from optimize.engines.base import PATH, PATH_OR_NAME, EngineOptions
from optimize.engines.tensorrt_plugin_builtin import BUILTIN
from optimize.figures import parse_limit


def _bytes(value: object) -> object:
    return int(parse_limit(value, "bytes")) if isinstance(value, str) else value


Bytes = Annotated[int, pydantic.BeforeValidator(_bytes, json_schema_input_type=int | str), pydantic.Field(ge=0)]
"""A number of bytes, or a size such as "4GiB"."""


class Shapes(EngineOptions):
    """The shapes of one input in one optimization profile."""

    min: tuple[int, ...] = pydantic.Field(description="Smallest shape the engine must take.")
    opt: tuple[int, ...] = pydantic.Field(description="Shape to choose kernels for.")
    max: tuple[int, ...] = pydantic.Field(description="Largest shape the engine must take.")
    are_values: bool = pydantic.Field(
        default=False, description="The input holds a shape itself: these are its values, kept on the host."
    )

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Shapes:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(f"min, opt and max differ in rank: {self.min}, {self.opt}, {self.max}")
        rows = zip(self.min, self.opt, self.max, strict=True)
        for axis, (low, typical, high) in enumerate(rows):
            if not low <= typical <= high:
                raise ValueError(f"axis {axis}: min <= opt <= max does not hold: {low}, {typical}, {high}")
        return self


PluginLayer = Literal["products", "attention", "norms"]


class TensorRTOptions(EngineOptions):
    """How TensorRT builds and runs. Left out, each key keeps the builder's own default."""

    written: ClassVar[frozenset[str]] = frozenset({"timing_cache"})

    kind: Literal["tensorrt"] = "tensorrt"
    profiles: tuple[dict[str, Shapes], ...] = pydantic.Field(
        default=(),
        description="Optimization profiles, each {input: {min, opt, max}}; absent: one from the axis ranges.",
    )
    plugins: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Plugin libraries to load, for building and for running: `./file.so`, or a bare name that the "
        "system's loader looks up; `builtin` is the product's own, for products with 8-bit weights and for "
        "`plugin_layers`.",
        json_schema_extra=PATH_OR_NAME,
    )
    plugin_layers: tuple[PluginLayer, ...] = pydantic.Field(
        default=(),
        description="What `builtin` computes beside 8-bit weights, in float16: `products` with constant weights, "
        "bias, and the GELU or residual after them; `attention` as `fuse.qkv_merge` prepares it; `norms`, layer "
        "normalisation. Absent: none.",
    )
    builder_optimization_level: int | None = pydantic.Field(
        default=None, ge=0, le=5, description="How long to search for fast kernels, 0 (quick) to 5."
    )
    tiling_optimization_level: Literal["none", "fast", "moderate", "full"] | None = pydantic.Field(
        default=None, description="How long to search for on-chip tilings."
    )
    workspace: Bytes | None = pydantic.Field(
        default=None, description='Scratch memory that kernels may use, such as "4GiB".'
    )
    tactic_sources: tuple[str, ...] | None = pydantic.Field(
        default=None, description="Kernel libraries to choose from, by their names in `TacticSource`."
    )
    timing_cache: str | None = pydantic.Field(
        default=None,
        description="File of kernel timings shared between builds; absent: one in the store.",
        json_schema_extra=PATH,
    )
    max_aux_streams: int | None = pydantic.Field(
        default=None, ge=0, description="Extra streams the engine may run layers on."
    )
    tf32: bool = pydantic.Field(default=True, description="Whether FP32 matmuls may round inputs to TF32.")
    sparse_weights: bool = pydantic.Field(default=False, description="Use 2:4 sparse kernels.")
    version_compatible: bool = pydantic.Field(
        default=False, description="Plan loads in later versions of the same major version."
    )
    hardware_compatibility_level: Literal["none", "ampere_plus", "same_compute_capability"] = pydantic.Field(
        default="none", description="Other GPUs the plan must run on."
    )
    compute_capabilities: tuple[str, ...] = pydantic.Field(
        default=(),
        description='GPUs to build for ahead of time (TensorRT for RTX): "8.9", "12.0", or "current" for the '
        "one here; absent: every one from Ampere on.",
    )
    refit: bool = pydantic.Field(default=False, description="Weights can be replaced in the built engine.")
    strip_plan: bool = pydantic.Field(
        default=False, description="Leave weights out of the plan; they are put in from the ONNX when opened."
    )
    refit_from: str | None = pydantic.Field(
        default=None,
        description="ONNX file to fill a stripped plan from; absent: the file it was built from.",
        json_schema_extra=PATH,
    )
    weight_streaming: bool = pydantic.Field(
        default=False, description="Keep weights in host memory and stream them in."
    )
    weight_streaming_budget: Bytes | None = pydantic.Field(
        default=None,
        description="Device memory for streamed weights; absent: the library's automatic choice.",
    )
    profiling_verbosity: Literal["layer_names_only", "detailed", "none"] = pydantic.Field(
        default="detailed", description="What the plan tells about its layers; detailed shows precisions."
    )
    cuda_graph: bool = pydantic.Field(
        default=True, description="Replay inference as a CUDA graph when shapes repeat."
    )

    def native_code(self) -> tuple[str, ...]:
        """Every plugin library; `builtin` is our own code."""
        return tuple(f"plugins: {library}" for library in self.plugins if library != BUILTIN)

    @pydantic.field_validator("compute_capabilities")
    @classmethod
    def _are_capabilities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "current" and not re.fullmatch(r"\d+\.\d", one):
                raise ValueError(f"expected a compute capability such as 8.9, or current, got '{one}'")
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TensorRTOptions:
        names = [frozenset(profile) for profile in self.profiles]
        if len(set(names)) > 1:
            raise ValueError(f"every profile must name the same inputs, got {[sorted(n) for n in names]}")
        if self.weight_streaming_budget is not None and not self.weight_streaming:
            raise ValueError("weight_streaming_budget needs weight_streaming: true")
        if self.refit_from is not None and not self.strip_plan:
            raise ValueError("refit_from needs strip_plan: true")
        if self.plugin_layers and BUILTIN not in self.plugins:
            raise ValueError(f"plugin_layers needs plugins: [{BUILTIN}]")
        if self.plugin_layers and (self.refit or self.strip_plan):
            raise ValueError("plugin_layers goes with neither refit nor strip_plan: its layers keep their weights")
        return self
