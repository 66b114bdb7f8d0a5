"""What a recipe's passes will make of a model's weights: bytes, found by trying each kind of weight once.

The passes run on skeletons, one matrix product per kind and shape of weight, with tensors that hold nothing:
weight-only passes are lazy, so that a model of any size takes milliseconds. One small weight with numbers in it
then tells how long a pass takes for an element on this machine.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from passes.base import Pass, PassContext, PassFailed
from passes.target import Target

SAMPLE = (2048, 2048)
"""Shape of the weight that is really quantized to learn the speed: enough tiles to occupy every core."""

WARM_UP = (256, 256)

LEARN_S = 0.1
"""Time spent on learning the speed of the passes, for each kind of operator and number."""

SMALL_BYTES = 1 << 16
"""Weights below this size are taken to stay as they are."""

_READERS = (("MatMul", 1), ("Gemm", 1), ("Gather", 0))
"""Operators, and which of their inputs, whose weights some pass stores in another format."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Weights that the passes treat alike.

    Attributes:
        op_type: MatMul or Gemm where they are the right side, Gather where they are the table; else "".
        shape: As stored.
        transposed: Whether the product sums over the last axis (Gemm with transB).
    """

    op_type: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    transposed: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def stored_bytes(self) -> int:
        """Bytes of one weight."""
        return -(-self.elements * self.dtype.bitwidth // 8)


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What comes out.

    Attributes:
        bytes_before: Of all weights as they are.
        bytes_after: Of all weights when the passes are through.
        seconds: Time the passes' arithmetic takes here, on all cores.
        largest: Bytes that the largest changed weight becomes.
        unknown: Passes whose effect only running them tells (they measure, search, or are not weight-only).
    """

    bytes_before: int
    bytes_after: int
    seconds: float
    largest: int
    unknown: tuple[str, ...]


class _Touched(Exception):
    """A pass read a weight that only has a shape."""


def kinds_of(model: ir.Model) -> collections.Counter[Kind]:
    """How many weights of each kind a model has; none of them is read."""
    found: collections.Counter[Kind] = collections.Counter()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            op_type, transposed = "", False
            for use in value.uses():
                if (use.node.op_type, use.idx) in _READERS and use.node.domain == "":
                    op_type = use.node.op_type
                    flag = use.node.attributes.get("transB")
                    transposed = flag is not None and bool(flag.as_int())
            found[Kind(op_type, tuple(int(size) for size in tensor.shape.numpy()), tensor.dtype, transposed)] += 1
    return found


def look(kinds: collections.Counter[Kind], passes: Sequence[tuple[str, Pass]], target: Target) -> Ahead:
    """Try the passes on every kind of weight."""
    lazy = [(name, built) for name, built in passes if name.startswith(("cast.", "quantize."))]
    unknown = [name for name, built in lazy if built.requires_calibration() or name == "quantize.auto"]
    lazy = [(name, built) for name, built in lazy if name not in unknown]
    before = sum(kind.stored_bytes * count for kind, count in kinds.items())
    after, seconds, largest = 0, 0.0, 0
    speeds: dict[tuple[str, ir.DataType], float] = {}
    for kind, count in kinds.items():
        made = kind.stored_bytes
        if lazy and kind.stored_bytes >= SMALL_BYTES and kind.dtype in _FLOATS:
            made = _bytes_after(kind, lazy, target, unknown)
        after += made * count
        if made == kind.stored_bytes:
            continue
        largest = max(largest, made)
        learned = (kind.op_type, kind.dtype)
        if learned not in speeds:
            speeds[learned] = _seconds_an_element(kind, lazy, target)
        seconds += speeds[learned] * kind.elements * count
    return Ahead(before, after, seconds, largest, tuple(dict.fromkeys(unknown)))


def _bytes_after(kind: Kind, passes: Sequence[tuple[str, Pass]], target: Target, unknown: list[str]) -> int:
    """What one weight becomes; where a pass must see numbers, a small weight's share of its bytes."""

    def hollow() -> ir.TensorProtocol:
        raise _Touched

    try:
        model = _skeleton(kind, hollow)
        _apply(model, passes, target)
        return _bytes_of(model)
    except _Touched:
        small = dataclasses.replace(
            kind, shape=tuple(min(size, side) for size, side in zip(kind.shape, SAMPLE, strict=False))
        )
    except PassFailed:
        unknown += [name for name, _ in passes]
        return kind.stored_bytes
    numbers = np.resize(np.linspace(-1, 1, 1 << 10), small.shape).astype(kind.dtype.numpy())
    model = _skeleton(small, lambda: ir.Tensor(numbers, dtype=kind.dtype))
    _apply(model, passes, target)
    return round(kind.stored_bytes * _bytes_of(model) / small.stored_bytes)


def _seconds_an_element(kind: Kind, passes: Sequence[tuple[str, Pass]], target: Target) -> float:
    """Median time of a weight over its elements, after a small one that brings threads and tables into being."""
    _seconds(kind, WARM_UP, passes, target)
    found = [_seconds(kind, SAMPLE, passes, target)]
    while sum(found) < LEARN_S and len(found) < 9:
        found.append(_seconds(kind, SAMPLE, passes, target))
    return statistics.median(found) / (SAMPLE[0] * SAMPLE[1])


def _seconds(kind: Kind, shape: tuple[int, int], passes: Sequence[tuple[str, Pass]], target: Target) -> float:
    pattern = np.random.default_rng(0).standard_normal(1 << 14, dtype=np.float32)
    numbers = np.resize(pattern, shape).astype(kind.dtype.numpy())
    model = _skeleton(dataclasses.replace(kind, shape=shape), lambda: ir.Tensor(numbers, dtype=kind.dtype))
    _apply(model, passes, target)
    started = time.perf_counter()
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value.numpy()
    return time.perf_counter() - started


def _apply(model: ir.Model, passes: Sequence[tuple[str, Pass]], target: Target) -> None:
    for _, built in passes:
        built.model_copy(update={"expect": {}, "skip": ()} if hasattr(built, "skip") else {"expect": {}}).apply(
            model, PassContext(target=target)
        )


def _bytes_of(model: ir.Model) -> int:
    held = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _skeleton(kind: Kind, evaluate: Callable[[], ir.TensorProtocol]) -> ir.Model:
    """A model of one operator that reads one weight of this kind."""
    tensor = ir.LazyTensor(evaluate, dtype=kind.dtype, shape=ir.Shape(kind.shape), name="weight")
    weight = ir.Value(name="weight", type=ir.TensorType(kind.dtype), shape=tensor.shape, const_value=tensor)
    if not kind.op_type or len(kind.shape) < 2:
        x = ir.val("x", kind.dtype, kind.shape)
        node = ir.node("Add", [x, weight], name="node")
        out: list[int | str] = list(kind.shape)
    elif kind.op_type == "Gather":
        x = ir.val("x", ir.DataType.INT64, ["rows"])
        node = ir.node("Gather", [weight, x], name="node")
        out = ["rows", *kind.shape[1:]]
    else:
        *batch, rows, columns = kind.shape
        summed, made = (columns, rows) if kind.transposed else (rows, columns)
        x = ir.val("x", kind.dtype, [*batch, "rows", summed])
        attributes = {"transB": 1} if kind.transposed else {}
        node = ir.node(kind.op_type, [x, weight], attributes, name="node")
        out = [*batch, "rows", made]
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(kind.dtype), ir.Shape(out)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 21}, name="skeleton")
    return ir.Model(graph, ir_version=10)
