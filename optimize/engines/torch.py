"""PyTorch as the baseline: a module, eager or compiled, behind the same face as every engine's session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import ml_dtypes
import numpy as np

from optimize.engines.base import EngineOptions, Feeds, TensorSpec, missing_inputs
from optimize.errors import BackendMissing, StageFailed, UsageError


class TorchOptions(EngineOptions):
    """How the original PyTorch module is run."""

    kind: Literal["torch"] = "torch"
    compiled: bool = False
    """Through `torch.compile`; needs a C++ compiler on a CPU."""
    threads: int | None = None
    """Threads within an operator, for the whole process; PyTorch's own choice if absent."""
    device: str = "cpu"


class TorchSession:
    """A module in evaluation mode with NumPy arrays in and out; satisfies `Session`.

    Args:
        module: A `torch.nn.Module`. Its outputs are flattened in order (tuples, lists, dataclasses and
            dictionaries by their own order), None left out.
        inputs: Its inputs, in the order of its arguments.
        outputs: Its outputs, in the order they are flattened.
        options: Device, threads, eager or compiled.
        by_keyword: Pass inputs by name instead of by position.
    """

    def __init__(
        self,
        module: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: TorchOptions | None = None,
        *,
        by_keyword: bool = False,
    ) -> None:
        self._torch = _torch()
        self.options = options or TorchOptions()
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        if self.options.threads is not None:
            self._torch.set_num_threads(self.options.threads)
        self.threads: int = self._torch.get_num_threads()
        module = module.to(self.options.device).eval()
        self._call = self._torch.compile(module, dynamic=True) if self.options.compiled else module
        self._by_keyword = by_keyword

    @property
    def title(self) -> str:
        """As reports spell it: "torch 2.13.0 eager, 2 threads"."""
        version = str(self._torch.__version__).partition("+")[0]
        mode = "compiled" if self.options.compiled else "eager"
        return f"torch {version} {mode}, {self.threads} thread{'s' if self.threads != 1 else ''}"

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on host arrays; every declared output comes back, by name."""
        results = self._leaves(self._forward(self._tensors(feeds)))
        if len(results) != len(self.outputs):
            raise StageFailed(
                f"torch: the module gave {len(results)} outputs, "
                f"{len(self.outputs)} are declared ({', '.join(spec.name for spec in self.outputs)})."
            )
        return {spec.name: self._array(value) for spec, value in zip(self.outputs, results, strict=True)}

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """A call that runs once on tensors already on the device, to be timed; waits for the device."""
        tensors = self._tensors(feeds)
        self._forward(tensors)
        on_cuda = self.options.device.startswith("cuda")

        def run_prepared() -> None:
            self._forward(tensors)
            if on_cuda:
                self._torch.cuda.synchronize()

        return run_prepared

    def placement(self) -> Mapping[str, int]:
        """One entry: the whole module on its device."""
        return {f"torch ({self.options.device})": 1}

    def _forward(self, tensors: Sequence[Any]) -> Any:
        try:
            with self._torch.inference_mode():
                if self._by_keyword:
                    return self._call(**dict(zip((spec.name for spec in self.inputs), tensors, strict=True)))
                return self._call(*tensors)
        except Exception as error:  # the user's own code runs here and may raise anything
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise StageFailed(
                f"torch: the module failed with {type(error).__name__}: {line}",
                hint="Run it once on the same inputs in Python to see where.",
            ) from error

    def _tensors(self, feeds: Feeds) -> list[Any]:
        problem = missing_inputs(self.inputs, feeds)
        if problem:
            raise UsageError(problem)
        return [self._tensor(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs]

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            tensor = self._torch.from_numpy(array.view(np.int16).copy()).view(self._torch.bfloat16)
        else:
            # a copy: PyTorch warns about, and could write through, arrays that are read-only
            tensor = self._torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self.options.device)

    def _array(self, tensor: Any) -> np.ndarray[Any, Any]:
        host = tensor.detach().cpu().contiguous()
        if host.dtype == self._torch.bfloat16:
            raw: np.ndarray[Any, Any] = host.view(self._torch.int16).numpy()
            return raw.view(ml_dtypes.bfloat16)
        array: np.ndarray[Any, Any] = host.numpy()
        return array

    def _leaves(self, result: Any) -> list[Any]:
        if isinstance(result, self._torch.Tensor):
            return [result]
        if result is None:
            return []
        if isinstance(result, Mapping):
            parts = list(result.values())
        elif dataclasses.is_dataclass(result):
            parts = [getattr(result, field.name) for field in dataclasses.fields(result)]
        elif isinstance(result, tuple | list):
            parts = list(result)
        else:
            raise StageFailed(f"torch: the module returned a {type(result).__name__}, expected tensors.")
        return [leaf for part in parts for leaf in self._leaves(part)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call = None


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendMissing("torch is not installed.", hint="pip install 'model-optimize[torch]'") from error
    return torch
