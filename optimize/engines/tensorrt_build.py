"""Building: options into the builder's configuration, a network into a plan."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import onnx_ir as ir

from optimize.engines import (
    tensorrt_dense,
    tensorrt_device,
    tensorrt_half_sums,
    tensorrt_layers,
    tensorrt_network,
    tensorrt_plugin_builtin,
    tensorrt_plugin_layer,
    tensorrt_plugins,
)
from optimize.engines.base import BuildRequest, Progress, TensorSpec
from optimize.engines.tensorrt_library import Library
from optimize.engines.tensorrt_log import Messages, logger, monitor
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.errors import BackendMissing, StageFailed

_FLAGS: Mapping[str, str] = {
    "refit": "REFIT", "strip_plan": "STRIP_PLAN", "version_compatible": "VERSION_COMPATIBLE",
    "weight_streaming": "WEIGHT_STREAMING", "sparse_weights": "SPARSE_WEIGHTS",
}  # fmt: skip
"""Options that are one flag of the builder."""


@dataclasses.dataclass(frozen=True)
class Built:
    """What a build gave.

    Attributes:
        plan: TensorRT's host memory with the serialized engine.
        layers: What the graph became.
        memory_bytes: Weights and activations, by kind: {"weights": 131328, "activation": 8192000}.
        notes: Full sentences: options without effect, the library's warnings.
    """

    plan: Any
    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[tensorrt_network.Profile, ...]
    layers: tensorrt_layers.Layers
    memory_bytes: Mapping[str, int]
    device: tensorrt_device.Device | None
    notes: tuple[str, ...]


def build(library: Library, options: TensorRTOptions, request: BuildRequest, progress: Progress) -> Built:
    """Build a strongly typed engine.

    Raises:
        StageFailed: With the ONNX node where TensorRT names one.
        BackendMissing: When this flavour cannot build without a GPU and none is here.
    """
    device = tensorrt_device.find()
    notes = _unsuited(library, options, device)
    if tensorrt_plugin_builtin.BUILTIN in options.plugins and library.flavour.times_tactics:
        tensorrt_plugin_builtin.require_runtime()  # Timing runs the kernels.
    model = tensorrt_network.read(request.model)
    tensorrt_network.check_supported(library, model)
    tensorrt_plugin_builtin.check_model(library, model, options.plugins)
    notes.extend(tensorrt_half_sums.notes(library, model))
    inputs = tensorrt_network.specs(model.graph.inputs)
    profiles = tensorrt_network.profiles(inputs, request.ranges, options.profiles)
    messages = Messages()
    log = logger(library.api, messages)
    tensorrt_plugins.load(library, options.plugins)
    builder = library.api.Builder(log)
    if builder is None:
        raise StageFailed(f"{library.title} cannot start building: {messages.last_error('no reason given')}")
    if options.plugins:
        tensorrt_plugin_builtin.require_parser_library(library)
    written = None
    if options.plugin_layers:
        changed = tensorrt_network.read(request.model)
        lowered = tensorrt_dense.lower(changed, options.plugin_layers)
        written = ir.to_proto(changed).SerializeToString() if any(lowered.taken.values()) else None
        notes.extend(lowered.notes())
    network, parser = tensorrt_network.parse(library, builder, log, request.model, model, written)
    config = builder.create_builder_config()
    _configure(library, options, config)
    tensorrt_network.add_profiles(builder, config, profiles)
    keep = _timing_cache(library, options, request.cache, config, device)
    config.progress_monitor, reraise = monitor(library.api, progress)
    tensorrt_plugin_layer.refusals.clear()
    plan = builder.build_serialized_network(network, config)
    reraise()
    if plan is None and tensorrt_plugin_layer.refusals:
        raise StageFailed(tensorrt_plugin_layer.refusals[0], hint="Correct the model, or the ranges of its axes.")
    if plan is None:
        raise _failure(library, messages)
    keep()
    del parser  # It owns the weights that the builder reads.
    if options.profiling_verbosity != "detailed":
        notes.append("Layers are told by profiling_verbosity: detailed alone.")
    layers = _layers(library, log, plan, messages, model, device)
    notes.extend(_emulated(library, layers, device))
    return Built(
        plan=plan,
        model=model,
        inputs=inputs,
        outputs=tensorrt_network.specs(model.graph.outputs),
        profiles=profiles,
        layers=layers,
        memory_bytes={kind.lower(): size for kind, size in messages.memory.items()},
        device=device,
        notes=(*notes, *messages.warnings),
    )


def _unsuited(library: Library, options: TensorRTOptions, device: tensorrt_device.Device | None) -> list[str]:
    """Refuse what this flavour cannot do here; say what has no effect."""
    flavour = library.flavour
    if device is None and not flavour.builds_without_device:
        raise BackendMissing(
            f"{flavour.title} builds engines on the GPU they run on, and no GPU is here.",
            hint="Build on a machine with one, or install tensorrt-rtx, which builds without.",
        )
    defaults = TensorRTOptions()
    asked = [name for name in TensorRTOptions.model_fields if getattr(options, name) != getattr(defaults, name)]
    for name in asked:
        if name in flavour.impossible:
            raise StageFailed(
                f"{flavour.title} cannot build with {name}: {flavour.impossible[name]}.",
                hint=f"Leave out {name} under `engine:`.",
            )
        current = name == "compute_capabilities" and "current" in options.compute_capabilities
        if (current or name in flavour.needs_device) and device is None:
            raise BackendMissing(
                f"{flavour.title} needs a GPU to build with {name}, and none is here.",
                hint=f"Build on a machine with one, or leave out {name} under `engine:`.",
            )
    return [
        f"{name} has no effect with {flavour.title}: {flavour.ignored[name]}."
        for name in asked
        if name in flavour.ignored
    ]


def _emulated(library: Library, layers: tensorrt_layers.Layers, device: tensorrt_device.Device | None) -> list[str]:
    """Which layers the GPU that is here runs slower than in FP16, as a note."""
    slow = library.flavour.emulated.get(device.compute_capability, ()) if device is not None else ()
    found = [
        f"{count} {kind} in {precision}"
        for kind, precisions in layers.counts.items()
        for precision, count in precisions.items()
        if precision in slow
    ]
    if not found or device is None:
        return []
    return [
        f"{library.title} emulates {', '.join(found)} on compute capability {device.compute_capability}, slower "
        "than FP16. Leave them in FP16, or quantize weights alone."
    ]


def _configure(library: Library, options: TensorRTOptions, config: Any) -> None:
    api = library.api
    for name, flag in _FLAGS.items():
        if getattr(options, name):
            config.set_flag(api.BuilderFlag.__members__[flag])
    if not options.tf32:
        config.clear_flag(api.BuilderFlag.TF32)
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.tiling_optimization_level is not None:
        levels = api.TilingOptimizationLevel.__members__
        config.tiling_optimization_level = levels[options.tiling_optimization_level.upper()]
    if options.workspace is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace)
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.hardware_compatibility_level != "none" and not library.flavour.is_portable:
        levels = api.HardwareCompatibilityLevel.__members__
        config.hardware_compatibility_level = levels[options.hardware_compatibility_level.upper()]
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        known = api.ComputeCapability.__members__
        for index, capability in enumerate(options.compute_capabilities):
            name = "CURRENT" if capability == "current" else f"SM{capability.replace('.', '')}"
            if name not in known or not config.set_compute_capability(known[name], index):
                raise StageFailed(
                    f"{library.title} does not build for compute capability {capability}.",
                    hint="Leave out `compute_capabilities` under `engine:`: portable plans may still run there.",
                )
    config.profiling_verbosity = api.ProfilingVerbosity.__members__[options.profiling_verbosity.upper()]
    if options.tactic_sources is not None:
        known = api.TacticSource.__members__
        unknown = [name for name in options.tactic_sources if name.upper() not in known]
        if unknown:
            raise StageFailed(
                f"no tactic source is called '{unknown[0]}'; {library.title} has: {', '.join(known)}."
            )
        config.set_tactic_sources(sum(1 << int(known[name.upper()]) for name in options.tactic_sources))


def _timing_cache(
    library: Library,
    options: TensorRTOptions,
    folder: Path | None,
    config: Any,
    device: tensorrt_device.Device | None,
) -> Callable[[], None]:
    """Start from earlier kernel timings; returns the call that keeps this build's."""
    path = _cache_path(library, options, folder, device)
    if path is None:
        return lambda: None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            mine = config.get_timing_cache()
            if path.is_file():  # Another build may have added to it meanwhile.
                mine.combine(config.create_timing_cache(path.read_bytes()), ignore_mismatch=False)
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(bytes(mine.serialize()))
            os.replace(part, path)

    return keep


def _cache_path(
    library: Library, options: TensorRTOptions, folder: Path | None, device: tensorrt_device.Device | None
) -> Path | None:
    if not library.flavour.times_tactics or device is None:
        return None
    if options.timing_cache is not None:
        return Path(options.timing_cache)
    kind = device.name.lower().replace(" ", "-")
    return folder / f"{library.flavour.module}-{library.version}-{kind}.timing" if folder else None


_DRIVER_TOO_OLD = "CUDA error 222"
"""CUDA_ERROR_UNSUPPORTED_PTX_VERSION: `refit` and `strip_plan` compile code while building."""


def _failure(library: Library, messages: Messages) -> StageFailed | BackendMissing:
    said = messages.first_error("it gives no reason")
    if _DRIVER_TOO_OLD in said:
        return BackendMissing(
            f"{library.title} compiled code that the installed NVIDIA driver is too old for: {said}",
            hint="Update the driver, or leave out `refit` and `strip_plan` under `engine:`.",
        )
    hint = "Raise `workspace` under `engine:`." if "workspace" in said else "Its words point at the layer."
    return StageFailed(f"{library.title} cannot build the engine: {said}", hint=hint)


def _layers(
    library: Library,
    log: Any,
    plan: Any,
    messages: Messages,
    model: ir.Model,
    device: tensorrt_device.Device | None,
) -> tensorrt_layers.Layers:
    """The inspector's list where the engine loads, else the list the builder wrote to its log."""
    if device is not None:
        engine = library.api.Runtime(log).deserialize_cuda_engine(plan)
        if engine is not None:
            told = engine.create_engine_inspector().get_engine_information(library.api.LayerInformationFormat.JSON)
            return tensorrt_layers.summarise("inspector", tensorrt_layers.from_inspector(told), model)
    if messages.layers:
        return tensorrt_layers.summarise("build log", tensorrt_layers.from_log(messages.layers), model)
    return tensorrt_layers.summarise("none", (), model)
