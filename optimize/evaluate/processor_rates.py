"""What this processor reaches at best, measured in two seconds: rates for a roofline where no data sheet has any.

A data sheet gives a GPU's rates; a processor's depend on its clock under load, its memory channels and how much of
both a virtual machine was given. So they are measured: a square matrix product with ONNX Runtime's own kernels, in
single precision and in eight bits, and copying memory, each at its best of several.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx

from passes.target import Precision, Target

WIDTH = 1024
"""Rows and columns of the product: three matrices that fill the caches but not the memory."""

COPIED_BYTES = 1 << 28
"""Beyond every cache."""

PART_S = 0.5
LEAST_RUNS = 3

SOURCE = (
    f"measured on this machine: ONNX Runtime's best on a product of {WIDTH} × {WIDTH} matrices, and the best of "
    "copying memory"
)

_PRODUCTS: Mapping[Precision, str] = {
    "fp32": f"""<ir_version: 10, opset_import: ["": 20]>
        product (float[{WIDTH}, {WIDTH}] a) => (float[{WIDTH}, {WIDTH}] c) {{
          c = MatMul(a, b) }}""",
    "int8": f"""<ir_version: 10, opset_import: ["": 20]>
        product (uint8[{WIDTH}, {WIDTH}] a) => (int32[{WIDTH}, {WIDTH}] c) {{
          c = MatMulInteger(a, b) }}""",
}


def with_rates(target: Target, threads: int) -> Target:
    """The target with this processor's rates where it has none of its own; GPUs are left as they are.

    Args:
        threads: As many as the engine is allowed.
    """
    if target.device != "cpu" or target.peak_ops_per_s:
        return target
    rates = dict(_rates(threads))
    return target.model_copy(
        update={
            "peak_ops_per_s": rates,
            "bandwidth_bytes_per_s": _bandwidth(threads),
            "sources": {**target.sources, "peak_ops_per_s": SOURCE, "bandwidth_bytes_per_s": SOURCE},
        }
    )


def _rates(threads: int) -> Iterator[tuple[Precision, float]]:
    """Operations per second, a multiplication and an addition counting as two."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    rng = np.random.default_rng(0)
    for precision, text in _PRODUCTS.items():
        model = onnx.parser.parse_model(text)
        left, right = {"fp32": (np.float32, np.float32), "int8": (np.uint8, np.int8)}[precision]
        # A stored weight is laid out for the kernel once, as a model's are.
        weight = rng.integers(0, 100, (WIDTH, WIDTH)).astype(right)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "b"))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"a": rng.integers(0, 100, (WIDTH, WIDTH)).astype(left)}
        yield precision, 2.0 * WIDTH**3 / _best(functools.partial(session.run, None, feeds))


def _bandwidth(threads: int) -> float:
    """Bytes per second, read and written ones counted."""
    source = np.ones(COPIED_BYTES // 8)
    copy = np.empty_like(source)
    parts = list(zip(np.array_split(copy, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return 2.0 * COPIED_BYTES / _best(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    call()
    best, started, runs = float("inf"), time.monotonic(), 0
    while runs < LEAST_RUNS or time.monotonic() - started < PART_S:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        runs += 1
    return best
