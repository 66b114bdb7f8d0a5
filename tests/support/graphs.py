"""Small graphs in ONNX text, random inputs for them, and comparing outputs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.support.runner import run

SIZES = {"B": 3, "S": 5, "T": 7, "N": 4}
"""Sizes of the symbolic dimensions that the texts use."""

FLOAT32 = 2.0**-14
"""Tolerance: float32 keeps 24 significant bits; sums of some hundred terms run in another order."""


def graph(body: str, inputs: str, outputs: str, weights: str = "", opset: int = 20) -> ir.Model:
    """A model from the body of an ONNX text graph."""
    constants = f"<{weights}> " if weights else ""
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> '
        f"g ({inputs}) => ({outputs}) {constants}{{ {body} }}"
    )


def feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs; a boolean's first row is True, its last False."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else SIZES[str(size.value)] for size in value.shape or ()]
        if value.dtype == ir.DataType.BOOL:
            array = rng.integers(0, 2, shape).astype(bool)
            array[0], array[-1] = True, False
        elif value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
            array = rng.integers(0, 4, shape).astype(value.dtype.numpy())
        else:
            array = rng.standard_normal(shape).astype(np.float32)
        found[str(value.name)] = array
    return found


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator stands in the main graph."""
    return Counter(node.op_type for node in model.graph)


def assert_same_outputs(after: ir.Model, before: ir.Model, tolerance: float = FLOAT32) -> None:
    """Compare two models on random inputs; the tolerance is relative to the largest value of an output."""
    inputs = feeds(before)
    old, new = run(before, inputs), run(after, inputs)
    assert list(new) == list(old)
    for name, expected in old.items():
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(new[name], expected, rtol=0, atol=tolerance * scale, err_msg=name)
