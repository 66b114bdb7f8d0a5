"""Opening an ONNX file that may be broken or hostile: weights mapped, nothing outside its folder read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from optimize import onnx_files
from optimize.engines.base import Progress
from optimize.errors import UsageError
from optimize.sources import nan
from optimize.sources.quiet import quiet

CHUNK = 1 << 22
"""Elements looked at in one go when weights are scanned for NaN."""

PUT_RIGHT = ("topologically sorted", "Field 'shape' of 'type' is required")
"""What ONNX's checker refuses and this project puts right: the order of nodes, outputs without a shape."""

_PACKED_BITS = 8
"""Types narrower than this many bits have no NaN and are stored packed."""


def load_onnx(path: Path) -> ir.Model:
    """Read an ONNX file; external data is checked and stays where it is.

    Raises:
        UsageError: When the file is missing, damaged, invalid, cyclic, or its external data is missing, too
            short, or lies outside the file's folder.
    """
    # An absolute path: onnx_ir checks where external data lies only when it knows the folder.
    path = Path(os.path.abspath(path))
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder; expected an ONNX file.")
    if not path.is_file():
        raise UsageError(f"there is no file '{path}'.")
    if path.stat().st_size == 0:
        raise UsageError(f"'{path.name}' is empty.")
    try:
        with quiet():  # the library prints names of a broken file as they are, terminal escapes among them
            model = ir.load(path, format="protobuf")
    # protobuf's and onnx_ir's errors share no base class; whatever they raise, the file is the reason.
    except Exception as error:
        if type(error).__name__ == "DecodeError":
            raise UsageError(f"'{path.name}' is not an ONNX file, or it is damaged.") from error
        raise UsageError(f"'{path.name}' cannot be read: {_line(_root(error))}") from error
    if not model.opset_imports and not len(model.graph):
        raise UsageError(f"'{path.name}' is not an ONNX file, or it is damaged (it holds no graph).")
    for tensor in external_tensors(model):
        onnx_files.check_place(tensor, path)
    _check_order(model, path)
    _check_valid(path)
    return model


def tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every stored tensor with a name to call it by: initializers, sub-graphs' too, and attributes."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield str(value.name), value.const_value
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield f"{node.name or node.op_type}.{attribute.name}", attribute.as_tensor()
                elif attribute.type == ir.AttributeType.GRAPH:
                    for value in attribute.as_graph().initializers.values():
                        if value.const_value is not None:
                            yield str(value.name), value.const_value


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor whose bytes lie in another file."""
    for _, tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor


def refuse_nan(model: ir.Model, what: str, progress: Progress) -> None:
    """Look through all floating-point weights, a chunk at a time.

    Infinities pass: masks are made of them.

    Raises:
        UsageError: Naming the first weight that holds NaN.
    """
    found = list(tensors(model))
    for number, (tensor_name, tensor) in enumerate(found):
        if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < _PACKED_BITS:
            continue
        progress("look for NaN in the weights", number, len(found))
        try:
            flat = tensor.numpy().reshape(-1)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{what}: weight '{tensor_name}' cannot be read: {_line(error)}") from error
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK]
            if count := nan.count(chunk):
                raise UsageError(
                    f"{what}: weight '{tensor_name}' (shape {list(tensor.shape.numpy())}) holds NaN "
                    f"({count} among the elements from {start}).",
                    hint="The model was damaged in training or conversion; export it again.",
                )
        chunk = flat = np.empty(0)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()  # one mapping at a time


def _check_order(model: ir.Model, path: Path) -> None:
    """Put nodes in the order they run in; a cycle has none."""
    try:
        model.graph.sort()
    except ValueError as error:
        raise UsageError(f"'{path.name}': the graph has a cycle: a node needs its own result.") from error
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.inputs:
            if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                continue
            raise UsageError(
                f"'{path.name}': node '{node.name or node.op_type}' needs '{value.name}', which nothing makes."
            )


def _check_valid(path: Path) -> None:
    """ONNX's own checker, on the file (it copes with more than 2 GB of external data)."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:  # its message may hold the file's bytes
        text = _line(error)
        if not any(known in text for known in PUT_RIGHT):
            raise UsageError(f"'{path.name}' is not a valid ONNX model: {text}") from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
