"""The little of CUDA that a session needs, through torch where it is installed, else through cuda-python."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from optimize.errors import BackendMissing, StageFailed

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Buffer(Protocol):
    """Device memory with page-locked host memory of the same size.

    Attributes:
        pointer: Device address.
        host: The host side, as bytes.
    """

    pointer: int
    host: Bytes

    def upload(self) -> None:
        """Copy host to device on the stream that made the buffer; returns at once."""

    def download(self) -> None:
        """Copy device to host on the stream that made the buffer; returns at once."""


class Stream(Protocol):
    """One CUDA stream and what is made on it.

    Attributes:
        handle: `cudaStream_t` as a number.
    """

    handle: int

    def buffer(self, size: int) -> Buffer:
        """Device and host memory of `size` bytes (at least one)."""
        ...

    def synchronize(self) -> None:
        """Wait for everything on this stream."""

    def event(self) -> Any:
        """Record a timing event now on this stream."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that have both happened."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts on this stream as a CUDA graph; the result replays it."""
        ...


def stream() -> Stream:
    """A new stream on the current device.

    Raises:
        BackendMissing: When neither torch with CUDA nor cuda-python is installed.
    """
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return TorchStream()
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        return PythonStream()
    raise BackendMissing(
        "running a TensorRT engine needs torch with CUDA, or cuda-python, and neither is here.",
        hint="Install one: `pip install cuda-python`.",
    )


class TorchStream:
    """A stream of torch's; its memory comes from torch's allocator."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._stream = torch.cuda.Stream()
        self.handle = int(self._stream.cuda_stream)

    def buffer(self, size: int) -> Buffer:
        return TorchBuffer(self._torch, self._stream, size)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def event(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        self.synchronize()
        # Thread-local: the library may compile kernels on a thread of its own meanwhile.
        with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return replay


class TorchBuffer:
    """Device and page-locked host memory from torch."""

    def __init__(self, torch: Any, stream: Any, size: int) -> None:
        self._torch, self._stream = torch, stream
        self._device = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
        self._host = torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True)
        self.pointer = int(self._device.data_ptr())
        self.host: Bytes = self._host.numpy()
        torch.cuda.current_stream().synchronize()  # The allocation belongs to the current stream.

    def upload(self) -> None:
        with self._torch.cuda.stream(self._stream):
            self._device.copy_(self._host, non_blocking=True)

    def download(self) -> None:
        with self._torch.cuda.stream(self._stream):
            self._host.copy_(self._device, non_blocking=True)


class PythonStream:
    """A stream through cuda-python's runtime interface."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self.handle = int(self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime; its error code becomes a `StageFailed`."""
        code, *results = getattr(self._runtime, name)(*arguments)
        if int(code):
            _, text = self._runtime.cudaGetErrorString(code)
            raise StageFailed(f"CUDA: {name}: {text.decode()}.")
        return results[0] if results else None

    def buffer(self, size: int) -> Buffer:
        return PythonBuffer(self, size)

    def synchronize(self) -> None:
        self.call("cudaStreamSynchronize", self.handle)

    def event(self) -> Any:
        event = self.call("cudaEventCreate")
        self.call("cudaEventRecord", event, self.handle)
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self.call("cudaEventElapsedTime", start, end))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.synchronize()
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        finally:
            graph = self.call("cudaStreamEndCapture", self.handle)
        executable = self.call("cudaGraphInstantiate", graph, 0)
        return lambda: self.call("cudaGraphLaunch", executable, self.handle)


class PythonBuffer:
    """Device and page-locked host memory from the CUDA runtime; freed with the object."""

    def __init__(self, stream: PythonStream, size: int) -> None:
        import ctypes

        self._stream, self._size = stream, max(size, 1)
        self.pointer = int(stream.call("cudaMalloc", self._size))
        self._address = int(stream.call("cudaMallocHost", self._size))
        self.host: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self._size).from_address(self._address))

    def _copy(self, target: int, source: int, kind: str) -> None:
        kinds = self._stream._runtime.cudaMemcpyKind
        self._stream.call("cudaMemcpyAsync", target, source, self._size, getattr(kinds, kind), self._stream.handle)

    def upload(self) -> None:
        self._copy(self.pointer, self._address, "cudaMemcpyHostToDevice")

    def download(self) -> None:
        self._copy(self._address, self.pointer, "cudaMemcpyDeviceToHost")

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._stream.call("cudaStreamSynchronize", self._stream.handle)
            self._stream.call("cudaFree", self.pointer)
            self._stream.call("cudaFreeHost", self._address)
