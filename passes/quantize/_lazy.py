"""Tensors computed together and only when they are written: codes, scales and zero points of one weight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from passes.base import PassFailed

Array = npt.NDArray[Any]


class Parts:
    """The tensors that come out of quantizing one weight, made at the first of them that is asked for.

    The others wait until they are taken, and are dropped then; of all weights only the two most recent ones
    wait, so that a model saved in graph order is computed once, with one weight in memory at a time.
    """

    _recent: OrderedDict[int, dict[str, ir.TensorProtocol]] = OrderedDict()
    _lock = threading.RLock()
    _KEPT = 2

    def __init__(self, compute: Callable[[], Mapping[str, ir.TensorProtocol]]) -> None:
        self._compute = compute

    def tensor(self, part: str, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
        """One part as a lazy tensor of the given type and shape."""

        def evaluate() -> ir.TensorProtocol:
            made = self._take(part)
            if made.dtype != dtype or tuple(made.shape.numpy()) != shape:
                raise PassFailed(
                    f"'{name}' came out as {made.dtype} {list(made.shape)}, announced as {dtype} "
                    f"{list(shape)}. This is a fault in the pass: report it with the model's weight shapes."
                )
            return made

        return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape), name=name)

    def _take(self, part: str) -> ir.TensorProtocol:
        with self._lock:
            waiting = self._recent.get(id(self))
            if waiting is None or part not in waiting:
                waiting = dict(self._compute())
                self._recent[id(self)] = waiting
                self._recent.move_to_end(id(self))
                while len(self._recent) > self._KEPT:
                    self._recent.popitem(last=False)
            made = waiting.pop(part)
            if not waiting:
                del self._recent[id(self)]
            return made

    def __del__(self) -> None:
        self._recent.pop(id(self), None)


class reading:
    """The array of a tensor while the block runs; a file mapped for it is unmapped afterwards.

    Mapped pages are not the process's own memory, but they are dropped all the same, so that a model larger
    than memory does not push everything else out.
    """

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self._tensor = tensor
        self._was_mapped = isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None

    def __enter__(self) -> Array:
        array: Array = self._tensor.numpy()
        return array

    def __exit__(self, *exception: object) -> None:
        if isinstance(self._tensor, ir.ExternalTensor) and not self._was_mapped:
            # A view that the block still holds keeps its pages; the rest goes now rather than at some
            # later garbage collection.
            try:
                self._tensor.release()
            except BufferError:
                return
