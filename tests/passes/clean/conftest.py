"""Models as ONNX text, run before and after a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.base import Pass, PassResult
from tests.support.runner import context, run


@pytest.fixture
def graph() -> Callable[[str], ir.Model]:
    """A checked model from ONNX text."""

    def graph(text: str, *, opset: int = 21, functions: str = "") -> ir.Model:
        domain = ', "local" : 1' if functions else ""
        proto = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : {opset}{domain}]>\n{text}\n{functions}'
        )
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)

    return graph


@pytest.fixture
def cleaned() -> Callable[..., PassResult]:
    """Apply a pass; the model stays valid, keeps its signature and its numbers, and is then left alone."""

    def cleaned(pass_: Pass, model: ir.Model, **feeds: object) -> PassResult:
        arrays = {name: np.asarray(feed) for name, feed in feeds.items()}
        signature = _signature(model)
        expected = run(model, arrays) if feeds else {}
        result = pass_.apply(model, context())
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert _signature(model) == signature
        if feeds:
            for name, array in run(model, arrays).items():
                np.testing.assert_array_equal(array, expected[name])
        once = ir.to_proto(model).SerializeToString(deterministic=True)
        assert pass_.apply(model, context()).rewrites == 0
        assert ir.to_proto(model).SerializeToString(deterministic=True) == once
        return result

    return cleaned


@pytest.fixture
def ops() -> Callable[[ir.Model], dict[str, int]]:
    """How often each operator stands in the main graph and its sub-graphs."""

    def ops(model: ir.Model) -> dict[str, int]:
        return dict(Counter(node.op_type for node in model.graph.all_nodes()))

    return ops


@pytest.fixture
def found() -> Callable[[PassResult], dict[str, int]]:
    """What a pass found, zeros left out."""

    def found(result: PassResult) -> dict[str, int]:
        return {pattern.name: pattern.found for pattern in result.patterns if pattern.found}

    return found


def _signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return [(value.name, str(value.dtype), str(value.shape)) for value in values]


@pytest.fixture
def lazy() -> Callable[[ir.Model, str, tuple[int, ...]], None]:
    """Make a weight one that cannot be read: reading it fails the test."""

    def lazy(model: ir.Model, name: str, shape: tuple[int, ...]) -> None:
        def refuse() -> ir.TensorProtocol:
            raise AssertionError(f"the data of '{name}' was read")

        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(refuse, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)
        value.shape = ir.Shape(shape)

    return lazy
