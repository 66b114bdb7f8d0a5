"""The original as a session: a PyTorch module, eager or compiled, fed and read as NumPy arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from optimize.engines.base import Feeds, TensorSpec, missing_inputs
from optimize.errors import StageFailed, UsageError
from optimize.sources.quiet import quiet

if TYPE_CHECKING:
    import torch


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor sharing the array's memory where it can; bfloat16 comes as ml_dtypes' type."""
    import torch

    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """An array sharing the tensor's memory where it can."""
    import ml_dtypes
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()  # type: ignore[no-any-return]


def dtype_name(dtype: torch.dtype) -> str:
    """NumPy's name of a torch type: torch.float32 → "float32"."""
    return str(dtype).removeprefix("torch.")


def flat_outputs(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors a module returned, in order, each with its key ("" when it has none).

    Raises:
        UsageError: When there is none, or something else than tensors is among them.
    """
    import torch

    leaves, _ = torch.utils._pytree.tree_flatten_with_path(result)
    found: list[tuple[str, torch.Tensor]] = []
    for path, leaf in leaves:
        if leaf is None:
            continue
        if not isinstance(leaf, torch.Tensor):
            raise UsageError(
                f"the module returns a {type(leaf).__name__}; expected tensors.",
                hint="Wrap it in a module that returns tensors only.",
            )
        keys = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        found.append((".".join(key for key in keys if key), leaf))
    if not found:
        raise UsageError("the module returns no tensor.")
    return found


class TorchSession:
    """Runs a module without gradients.

    Args:
        call: Turns tensors by input name into the module's result.
        inputs: What it takes.
        outputs: What it gives, in the order of the flattened result.
        threads: Threads per operator while the session is open; None leaves torch's own choice.
        compiled: Through `torch.compile`.
    """

    def __init__(
        self,
        call: Callable[[Mapping[str, torch.Tensor]], Any],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        self._call, self._inputs, self._outputs = call, tuple(inputs), tuple(outputs)
        self._threads, self._compiled = threads, compiled

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        tensors = self._tensors(feeds)
        with self._settings():
            flat = flat_outputs(self._call(tensors))
        # A copy where a result may share memory with an input: the caller owns both.
        return {
            spec.name: np.array(to_numpy(tensor))
            for spec, (_, tensor) in zip(self._outputs, flat, strict=True)
        }

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        tensors = self._tensors(feeds)
        settings, call = self._settings, self._call

        def once() -> None:
            with settings():
                call(tensors)

        return once

    def placement(self) -> Mapping[str, int]:
        return {"torch.compile" if self._compiled else "torch eager": 1}

    def __enter__(self) -> Self:
        import torch

        self._threads_before = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        torch.set_num_threads(self._threads_before)

    def _tensors(self, feeds: Feeds) -> dict[str, torch.Tensor]:
        wrong = missing_inputs(self._inputs, feeds)
        if wrong:
            raise StageFailed(f"original: {wrong}")
        return {spec.name: to_torch(feeds[spec.name]) for spec in self._inputs}

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        import torch

        if not self._compiled:
            with torch.inference_mode():
                yield
            return
        with torch.no_grad(), quiet():
            yield
