"""Layers in 16 bits of the built-in plugin: its second kind of MatMulNBits, as `tensorrt_dense` writes it.

A plan holds a layer's numbers, and a model's shapes come from elsewhere, so both are checked against the operands
before a kernel gets their addresses.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from optimize.engines.tensorrt_dense_choice import (
    ADDRESSABLE,
    ATTENTION,
    HEAD_SIZES,
    MULTIPLE,
    NORM,
    NORM_WIDTH,
    REST,
    STORED,
    Form,
    choose,
)
from optimize.engines.tensorrt_plugin_pointer import Pointer

FIELDS = ("k", "n", "bits", "block_size", "accuracy_level", "has_zeros")
ALIGNMENT = 16
"""Bytes, of what the bulk copy engine reads."""

Dims = Sequence[int]


def check_fields(numbers: Mapping[str, int]) -> None:
    """Refuse numbers that stand for no layer.

    Raises:
        ValueError: With the numbers.
    """
    k, n, block, which = (numbers[name] for name in ("k", "n", "block_size", "accuracy_level"))
    if block == REST:
        is_known = which in (ATTENTION, NORM) and n > 0 and not numbers["has_zeros"]
    else:
        sizes = all(0 < size < ADDRESSABLE and size % MULTIPLE == 0 for size in (k, n))
        is_known = block in STORED and which in tuple(Form) and sizes and 2 * k * n < ADDRESSABLE
    if not is_known:
        raise ValueError(f"the built-in plugin has no layer of these numbers: {dict(numbers)}.")


def check_shapes(numbers: Mapping[str, int], inputs: Sequence[Dims], output: Dims) -> None:
    """Refuse operands that the layer's numbers do not fit.

    Args:
        numbers: Of the layer.
        inputs: Shapes of x, the bytes of w, the float16 constant, and the residual where there is one.
        output: Shape of y.

    Raises:
        ValueError: With the shapes.
    """
    x, codes, half = inputs[:3]
    k, n = numbers["k"], numbers["n"]
    if numbers["block_size"] != REST:
        is_fitting = x[-1] == k and math.prod(codes) == 2 * k * n and math.prod(half) == n
        residuals = [list(output)] if numbers["has_zeros"] else []
        is_fitting = (
            is_fitting and list(output) == [*x[:-1], n] and [list(dims) for dims in inputs[3:]] == residuals
        )
    elif numbers["accuracy_level"] == NORM:
        is_fitting = x[-1] == n <= NORM_WIDTH and list(half) == [2, n] and list(output) == list(x)
    else:
        is_fitting = len(x) == 3 and len(half) == 2 and half[1] in HEAD_SIZES and half[0] * half[1] == n
        is_fitting = is_fitting and x[-1] == 3 * n and list(output) == [*x[:-1], n]
    if not is_fitting:
        shapes = ", ".join(str(list(dims)) for dims in (*inputs, output))
        raise ValueError(f"the built-in plugin's layer {dict(numbers)} does not fit its operands: {shapes}.")
    if max(math.prod(x), math.prod(output)) >= ADDRESSABLE:
        raise ValueError(f"the built-in plugin takes fewer than 2³¹ elements, not {list(x)} to {list(output)}.")


def output_shape(api: Any, numbers: Mapping[str, int], inputs: Any, expressions: Any) -> Any:
    """y's dimensions: `(…, N)`."""
    x = inputs[0]
    shape = api.DimsExprs(len(x))
    for axis in range(len(x) - 1):
        shape[axis] = x[axis]
    shape[len(x) - 1] = expressions.constant(numbers["n"])
    return shape


def enqueue(
    numbers: Mapping[str, int], inputs: Sequence[int], outputs: Sequence[int], shapes: Sequence[Dims]
) -> None:
    """Put the layer on torch's current stream.

    Args:
        numbers: Of the layer.
        inputs, outputs: Addresses on the device.
        shapes: Of the inputs, checked.
    """
    import torch

    half = torch.float16
    x, w, constant = (Pointer(address, half) for address in inputs[:3])
    y, dims = Pointer(outputs[0], half), shapes[0]
    rows = math.prod(dims[:-1])
    if numbers["block_size"] == REST:
        from optimize.engines.tensorrt_attention_kernels import launch_attention, launch_layer_norm

        number = struct.unpack("<f", struct.pack("<i", numbers["k"]))[0]
        if numbers["accuracy_level"] == NORM:
            launch_layer_norm(x, constant, y, rows, dims[-1], number)
        else:
            heads, size = shapes[2]
            launch_attention(x, y, dims[0], dims[1], heads, size, number)
        return
    from optimize.engines.tensorrt_dense_kernels import Sizes, launch

    n, k, transposed = numbers["n"], numbers["k"], STORED[numbers["block_size"]]
    residual = Pointer(inputs[3], half) if numbers["has_zeros"] else None
    processors, capability = _device()
    is_aligned = all(address % ALIGNMENT == 0 for address in inputs[:2])
    cut = choose(rows, n, k, residual is not None, transposed, capability if is_aligned else 80)
    sizes = Sizes(rows, n, k, Form(numbers["accuracy_level"]), transposed)
    launch(x, w, constant, residual, y, sizes, cut, processors)


@functools.cache
def _device() -> tuple[int, int]:
    """Multiprocessors and compute capability (90 for 9.0) of the current GPU."""
    import torch

    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return found.multi_processor_count, 10 * found.major + found.minor
