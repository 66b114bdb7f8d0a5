"""Models for the casts: ONNX text with weights drawn from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

Make = Callable[..., ir.Model]


@pytest.fixture
def make() -> Make:
    rng = np.random.default_rng(5)

    def build(text: str, **arrays: Any) -> ir.Model:
        model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        known = {
            value.name: value for node in model.graph.all_nodes() for value in node.inputs if value is not None
        }
        for name, given in arrays.items():
            array = rng.normal(0, 0.2, given).astype(np.float32) if isinstance(given, tuple) else np.asarray(given)
            value = known[name]
            value.const_value = ir.tensor(array, name=name)
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
            model.graph.register_initializer(value)
        return model

    return build
