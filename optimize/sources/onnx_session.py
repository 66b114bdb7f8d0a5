"""An ONNX file as the original: ONNX Runtime on the CPU with graph optimisation off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from optimize.engines.base import Feeds, TensorSpec, missing_inputs
from optimize.errors import StageFailed, UsageError

_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


class OnnxSession:
    """Runs the file as it is: optimisation off, since it silently changes some quantized graphs' results.

    Args:
        path: The file, external data beside it.
        threads: Threads per operator; None leaves the runtime's own choice.

    Raises:
        UsageError: When ONNX Runtime refuses the file.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            line = " ".join(str(error).split())[:300]
            raise UsageError(f"ONNX Runtime refuses '{path.name}': {line}") from error
        self._inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self._outputs = tuple(_spec(value) for value in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        wrong = missing_inputs(self._inputs, feeds)
        if wrong:
            raise StageFailed(f"original: {wrong}")
        names = [output.name for output in self._outputs]
        try:
            results = self._session.run(names, dict(feeds))
        except Exception as error:  # onnxruntime's errors share no base class
            line = " ".join(str(error).split())[:300]
            raise StageFailed(f"the original ONNX model failed: {line}") from error
        return dict(zip(names, results, strict=True))

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for output in self._outputs:
            binding.bind_output(output.name)
        session = self._session

        def once() -> None:
            session.run_with_iobinding(binding)

        return once

    def placement(self) -> Mapping[str, int]:
        return {"CPUExecutionProvider": 1}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def _spec(value: Any) -> TensorSpec:
    inner = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, int | str) else None for dim in value.shape)
    return TensorSpec(value.name, _DTYPES.get(inner, inner), shape)
