"""An ONNX Runtime session with typed inputs and outputs; copying and binding happen before timing."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from optimize.engines.base import Feeds, TensorSpec, missing_inputs
from optimize.engines.onnxruntime_providers import plugin_devices, plugin_of
from optimize.engines.onnxruntime_saturation import exact_products, runs_wrong_as_written
from optimize.errors import StageFailed, UsageError
from passes.cores import usable_cores

Level = Literal["disable", "basic", "extended", "all"]

LEVELS: dict[str, Any] = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

CPU = "CPUExecutionProvider"

SUSPECTS = ("ReluQuantRewrite", "QDQPropagationTransformer", "WeightBiasQuantization", "MatMulAddFusion")
"""Graph optimisers known to change results of quantized graphs."""

_ERRORS_ONLY = 3
"""Severity: ONNX Runtime writes warnings to stderr itself, past every logger."""

_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}
_ONNX_ONLY: dict[str, tuple[type, int]] = {
    "bfloat16": (ml_dtypes.bfloat16, ir.DataType.BFLOAT16.value),
    "float8e4m3fn": (ml_dtypes.float8_e4m3fn, ir.DataType.FLOAT8E4M3FN.value),
    "float8e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, ir.DataType.FLOAT8E4M3FNUZ.value),
    "float8e5m2": (ml_dtypes.float8_e5m2, ir.DataType.FLOAT8E5M2.value),
    "float8e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, ir.DataType.FLOAT8E5M2FNUZ.value),
}
"""Types that NumPy lacks: the ml_dtypes type, and the ONNX number for handing over raw memory."""

_ML_DTYPES = {np.dtype(kind).name: number for kind, number in _ONNX_ONLY.values()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a session is opened.

    Attributes:
        level: Graph optimisation.
        threads: Threads within an operator; None: one per core this process may use.
        providers: Execution providers with their options, most wanted first; the CPU is always last.
        config: Session configuration entries ("session.…", "ep.…").
        disabled_optimizers: Graph optimisers to leave out, by ONNX Runtime's names.
        save_to: Where to write the optimised graph; its weights go beside it as `<name>.data`.
    """

    level: Level = "all"
    threads: int | None = None
    providers: tuple[tuple[str, Mapping[str, str]], ...] = ((CPU, {}),)
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()
    save_to: Path | None = None


def open_onnx(model: Path | bytes, *, optimized: bool = True, threads: int | None = None) -> OnnxRuntimeSession:
    """Open an ONNX file (external data beside it) or a serialised model on the CPU.

    Args:
        model: Path or bytes.
        optimized: False runs the graph as it is written, the ground truth for comparisons; where that would
            saturate on this processor, with as little optimisation as makes it exact.
        threads: Threads within an operator; None: one per usable core.

    Raises:
        UsageError: When the file is missing or no valid ONNX model.
        StageFailed: When ONNX Runtime cannot run it.
    """
    settings = Settings(threads=threads)
    return OnnxRuntimeSession(model, settings if optimized else as_written(settings, model))


def as_written(settings: Settings, model: Path | bytes | onnx.ModelProto) -> Settings:
    """`settings` without graph optimisation, or with the little that keeps 8-bit products from saturating."""
    if runs_wrong_as_written(model):
        return dataclasses.replace(settings, level="extended", disabled_optimizers=SUSPECTS)
    return dataclasses.replace(settings, level="disable", disabled_optimizers=())


class OnnxRuntimeSession:
    """An opened model; satisfies `Session`."""

    def __init__(self, model: Path | bytes, settings: Settings) -> None:
        self.settings = settings
        self.threads = settings.threads or usable_cores()
        try:
            options = session_options(settings, self.threads)
            self._session: Any = onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=_providers(settings, options),
                disabled_optimizers=list(settings.disabled_optimizers) or None,
                enable_fallback=0,
            )
        except Exception as error:  # ONNX Runtime's classes share no base but Exception
            raise session_error(error, model) from error
        self.inputs = tuple(_spec(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in self._session.get_outputs())
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._device = "cpu" if self.providers[0] == CPU else "cuda"
        self._plain = not any(spec.dtype in _ML_DTYPES for spec in self.inputs + self.outputs)

    @property
    def title(self) -> str:
        """As reports spell it: "onnxruntime 1.32.0, CPU, 2 threads"."""
        where = self.providers[0].removesuffix("ExecutionProvider")
        plural = "s" if self.threads != 1 else ""
        return f"onnxruntime {onnxruntime.__version__}, {where}, {self.threads} thread{plural}"

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on host arrays; every declared output comes back, by name."""
        self._check(feeds)
        names = [spec.name for spec in self.outputs]
        try:
            if self._plain:
                values = self._session.run(names, dict(feeds))
                return dict(zip(names, values, strict=True))
            handles = {spec.name: _to_ort(feeds[spec.name], spec.dtype) for spec in self.inputs}
            results = self._session.run_with_ort_values(names, handles)
        except Exception as error:
            raise session_error(error, None) from error
        return {name: _to_numpy(value) for name, value in zip(names, results, strict=True)}

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """A call that runs once with inputs and outputs already in place on the device, to be timed."""
        self._check(feeds)
        binding = self._session.io_binding()
        held: list[Any] = []
        for spec in self.inputs:
            if self._device == "cpu":
                value = _to_ort(feeds[spec.name], spec.dtype)
            else:
                value = onnxruntime.OrtValue.ortvalue_from_numpy(feeds[spec.name], self._device, 0)
            held.append(value)
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, self._device)
        session, run = self._session, self._session.run_with_iobinding
        try:
            run(binding)
        except Exception as error:
            raise session_error(error, None) from error
        # the same feeds give the same shapes again: the outputs' memory is reused from here on
        for spec, value in zip(self.outputs, binding.get_outputs(), strict=True):
            if value.is_tensor():
                held.append(value)
                binding.bind_ortvalue_output(spec.name, value)
        synchronize = binding.synchronize_outputs if self._device != "cpu" else None

        def run_prepared(keep: Any = (session, held)) -> None:
            run(binding)
            if synchronize is not None:
                synchronize()

        return run_prepared

    def placement(self) -> Mapping[str, int]:
        """Nodes per execution provider, as assigned when the session was opened."""
        counts: Counter[str] = Counter()
        for part in self._session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        return dict(counts)

    def nodes(self) -> tuple[tuple[str, str, str], ...]:
        """Every assigned node: (provider, operator type, node name)."""
        return tuple(
            (part.ep_name, node.op_type, node.name)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )

    def _check(self, feeds: Feeds) -> None:
        problem = missing_inputs(self.inputs, feeds)
        if problem:
            raise UsageError(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def session_options(settings: Settings, threads: int) -> Any:
    """ONNX Runtime's options object for these settings."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[settings.level]
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    config = {
        "session.record_ep_graph_assignment_info": "1",
        # threads that spin on after a run would take the cores from whatever is timed next
        "session.force_spinning_stop": "1",
        **exact_products(),
        **settings.config,
    }
    if settings.save_to is not None:
        options.optimized_model_filepath = str(settings.save_to)
        config["session.optimized_model_external_initializers_file_name"] = f"{settings.save_to.name}.data"
        config["session.optimized_model_external_initializers_min_size_in_bytes"] = "1024"
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _providers(settings: Settings, options: Any) -> list[tuple[str, dict[str, str]]] | None:
    """Providers by name; None where the first is a plugin, whose devices go into `options` instead."""
    wanted, wishes = settings.providers[0]
    module = None if wanted == CPU else plugin_of(wanted)
    if module is None:
        return [(name, dict(given)) for name, given in settings.providers]
    options.add_provider_for_devices(list(plugin_devices(module)), dict(wishes))
    return None


def session_error(error: Exception, model: Path | bytes | None) -> UsageError | StageFailed:
    """ONNX Runtime's complaint in one line: without codes and paths, with the node's source module."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    if isinstance(model, Path):
        if not model.exists():
            return UsageError(f"{model}: no such file.")
        text = text.replace(f"Load model from {model} failed:", "").replace(str(model), model.name)
    text = text.splitlines()[0] if text else type(error).__name__
    where = f"{model.name}: " if isinstance(model, Path) else ""
    if "Protobuf parsing failed" in text or "INVALID_PROTOBUF" in str(error):
        return UsageError(f"{where}not a valid ONNX file.", hint="Export or download it again.")
    return StageFailed(f"onnxruntime: {where}{text}")


def _spec(argument: Any) -> TensorSpec:
    match = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    if match is None:
        raise StageFailed(f"onnxruntime: '{argument.name}' is a {argument.type}; only tensors are supported.")
    kind = match.group(1)
    dtype = np.dtype(_ONNX_ONLY[kind][0]).name if kind in _ONNX_ONLY else _NUMPY_NAMES.get(kind, kind)
    return TensorSpec(argument.name, dtype, tuple(argument.shape))


def _to_ort(array: np.ndarray[Any, Any], dtype: str) -> Any:
    array = np.ascontiguousarray(array)
    if dtype not in _ML_DTYPES:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    raw = array.view(np.uint8 if array.itemsize == 1 else np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, _ML_DTYPES[dtype])


def _to_numpy(value: Any) -> np.ndarray[Any, Any]:
    kind = value.data_type()[len("tensor(") : -1]
    if kind not in _ONNX_ONLY:
        array: np.ndarray[Any, Any] = value.numpy()
        return array
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, _ONNX_ONLY[kind][0]).reshape(value.shape()).copy()
