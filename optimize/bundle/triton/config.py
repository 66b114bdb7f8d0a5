"""Model configurations through Triton's own protobuf, so that a wrong field cannot be written."""

from __future__ import annotations

from typing import Any

from optimize.bundle.triton.options import ServingOptions
from optimize.bundle.triton.tensors import Interface, Tensor
from optimize.errors import BackendMissing

WARMUP = "ones"
"""Prefix of the warm-up's data files, one per input, in the model's `warmup/` folder."""


def protobuf() -> Any:
    """The module with Triton's messages.

    Raises:
        BackendMissing: When tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise BackendMissing(
            f"Triton's protobuf is not here ({error}).", hint='Install it: pip install "model-optimize[triton]".'
        ) from None
    return model_config_pb2


def text(config: Any) -> str:
    """A configuration's `config.pbtxt`."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def model(name: str, backend: str, io: Interface, options: ServingOptions, *, on_gpu: bool, file: str) -> Any:
    """The configuration of the engine itself."""
    messages = protobuf()
    config = _base(name, io.inputs, io.outputs, io.max_batch, options)
    config.backend = backend
    if backend != "python":
        config.default_model_filename = file
    kind = messages.ModelInstanceGroup.KIND_GPU if on_gpu else messages.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=options.instances)
    if io.max_batch:
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us
        config.dynamic_batching.preferred_batch_size.extend(options.preferred_batches)
    for size in sorted({1, *options.preferred_batches}) if io.max_batch else (0,):
        warmup = config.model_warmup.add(name=f"batch of {size}" if size else "once", batch_size=size)
        for tensor in io.inputs:
            item = warmup.inputs[tensor.name]
            item.data_type = messages.DataType.Value(tensor.data_type)
            item.dims.extend(tensor.typical)
            item.input_data_file = f"{WARMUP}-{tensor.name}"
    return config


def optimized_already(config: Any, *, is_optimized: bool, threads: int | None) -> None:
    """Keep Triton's ONNX Runtime backend from optimising a graph that was saved optimised, and was measured so."""
    if is_optimized:
        config.optimization.graph.level = 2  # the backend's number for "all optimisations disabled"
    if threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(threads)


def step(
    name: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    max_batch: int,
    options: ServingOptions,
    parameters: dict[str, str],
) -> Any:
    """A Python step of an ensemble."""
    config = _base(name, inputs, outputs, max_batch, options)
    config.backend = "python"
    config.instance_group.add(kind=protobuf().ModelInstanceGroup.KIND_CPU, count=options.instances)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def ensemble(
    name: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    max_batch: int,
    options: ServingOptions,
    steps: list[tuple[str, dict[str, str], dict[str, str]]],
) -> Any:
    """A chain of models; each step is (model, its inputs from the ensemble's tensors, its outputs to them)."""
    config = _base(name, inputs, outputs, max_batch, options)
    config.platform = "ensemble"
    for model_name, takes, gives in steps:
        item = config.ensemble_scheduling.step.add(model_name=model_name, model_version=-1)
        for key, value in takes.items():
            item.input_map[key] = value
        for key, value in gives.items():
            item.output_map[key] = value
    return config


def _base(
    name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], max_batch: int, options: ServingOptions
) -> Any:
    messages = protobuf()
    config = messages.ModelConfig(name=name, max_batch_size=max_batch)
    config.version_policy.latest.num_versions = options.versions_kept or 1
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for tensor in tensors:
            item = field.add(name=tensor.name, data_type=messages.DataType.Value(tensor.data_type))
            item.dims.extend(tensor.dims)
    return config
