"""One execution context with its stream and memory: what runs at a time. Several lanes share an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  # np.dtype("bfloat16") needs it
import numpy as np

from optimize.engines import tensorrt_cuda
from optimize.engines.base import Feeds, TensorSpec, missing_inputs
from optimize.engines.tensorrt_log import Messages
from optimize.engines.tensorrt_network import Profile
from optimize.errors import StageFailed, UsageError


class Lane:
    """Binds feeds, runs, and gives outputs back.

    Args:
        api: The TensorRT module.
        engine: A deserialized engine.
        messages: Where the engine's logger writes.
        inputs, outputs: What the engine takes and gives.
        profiles: Its optimization profiles.
    """

    def __init__(
        self,
        api: Any,
        engine: Any,
        messages: Messages,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Profile],
    ) -> None:
        self._api, self._messages = api, messages
        self._inputs, self._outputs, self._profiles = inputs, outputs, profiles
        self.stream = tensorrt_cuda.stream()
        self.context = engine.create_execution_context()
        if self.context is None:
            said = messages.last_error("no reason given")
            raise StageFailed(f"the engine cannot run here: {said}", hint="Free device memory and try again.")
        self._buffers: dict[str, tensorrt_cuda.Buffer] = {}
        self._grown: dict[str, _Grown] = {}
        self._profile = 0

    def bind(self, feeds: Feeds) -> None:
        """Check feeds, set shapes and addresses, and copy the feeds to the host side of their buffers.

        Raises:
            UsageError: When the feeds do not fit the model.
            StageFailed: When no profile takes their shapes.
        """
        fault = missing_inputs(self._inputs, feeds)
        if fault:
            raise UsageError(fault)
        self._choose_profile(feeds)
        for spec in self._inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            buffer = self._buffer(spec.name, array.nbytes)
            buffer.host[: array.nbytes] = array.reshape(-1).view(np.uint8)
            self.context.set_input_shape(spec.name, array.shape)
            on_host = any(profile[spec.name].are_values for profile in self._profiles)
            address = buffer.host.ctypes.data if on_host else buffer.pointer
            self.context.set_tensor_address(spec.name, address)
        for spec in self._outputs:
            shape = tuple(self.context.get_tensor_shape(spec.name))
            if -1 in shape:
                self._grow(spec)
                continue
            buffer = self._buffer(spec.name, int(np.prod(shape)) * np.dtype(spec.dtype).itemsize)
            self.context.set_tensor_address(spec.name, buffer.pointer)

    def _choose_profile(self, feeds: Feeds) -> None:
        reasons = []
        for number, profile in enumerate(self._profiles):
            reason = next(
                (
                    f"input '{name}' {list(feeds[name].shape)} is outside {list(shapes.min)} to {list(shapes.max)}"
                    for name, shapes in profile.items()
                    if not shapes.are_values and not _inside(feeds[name].shape, shapes.min, shapes.max)
                ),
                None,
            )
            if reason is None:
                if number != self._profile:
                    self.context.set_optimization_profile_async(number, self.stream.handle)
                    self.stream.synchronize()
                    self._profile = number
                return
            reasons.append(reason)
        if reasons:
            raise StageFailed(
                f"no optimization profile takes these shapes: {'; '.join(reasons)}.",
                hint="Build the engine with wider axis ranges.",
            )

    def _buffer(self, name: str, size: int) -> tensorrt_cuda.Buffer:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer.host) != max(size, 1):
            buffer = self._buffers[name] = self.stream.buffer(size)
        return buffer

    def _grow(self, spec: TensorSpec) -> None:
        """Give an output whose shape depends on data the most it can need, and note its real shape."""
        buffer = self._buffer(spec.name, self.context.get_max_output_size(spec.name))
        grown = self._grown[spec.name] = _allocator(self._api, buffer.pointer)
        self.context.set_output_allocator(spec.name, grown)

    def upload(self) -> None:
        """Copy the bound feeds to the device."""
        for spec in self._inputs:
            self._buffers[spec.name].upload()

    def enqueue(self) -> None:
        """Put one inference on the stream.

        Raises:
            StageFailed: With TensorRT's words.
        """
        if not self.context.execute_async_v3(self.stream.handle):
            raise StageFailed(f"the engine failed: {self._messages.last_error('it gives no reason')}")

    def download(self) -> None:
        """Copy the outputs to the host."""
        for spec in self._outputs:
            self._buffers[spec.name].download()

    def results(self) -> dict[str, np.ndarray[Any, Any]]:
        """The downloaded outputs, by name; call after synchronizing."""
        found = {}
        for spec in self._outputs:
            grown = self._grown.get(spec.name)
            shape = grown.shape if grown else tuple(self.context.get_tensor_shape(spec.name))
            dtype = np.dtype(spec.dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            found[spec.name] = self._buffers[spec.name].host[:size].copy().view(dtype).reshape(shape)
        return found

    def replayed(self, cuda_graph: bool) -> Callable[[], None]:
        """One inference as a call: a CUDA graph's replay where asked for and possible, else an enqueue."""
        self.enqueue()  # The first run compiles kernels and takes memory, which no graph can record.
        self.stream.synchronize()
        if not cuda_graph or self._grown:
            return self.enqueue
        return self.stream.capture(self.enqueue)


def _inside(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> bool:
    return len(shape) == len(low) and all(
        least <= axis <= most for axis, least, most in zip(shape, low, high, strict=True)
    )


class _Grown:
    """The noted shape of an output whose shape depends on data."""

    shape: tuple[int, ...] = ()


def _allocator(api: Any, pointer: int) -> Any:
    class Allocator(api.IOutputAllocator, _Grown):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IOutputAllocator.__init__(self)

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return pointer

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
