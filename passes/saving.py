"""Writing a model to disk: one tensor in memory at a time, whole or not at all, the same bytes every time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

INLINE_BYTES = 64 << 20
"""A model whose weights are smaller than this in all stays one file."""

SMALL_TENSOR_BYTES = 1024
"""Tensors up to this size stay inside the model: shape inference and engines read them as constants."""

PAGE_BYTES = 4096
"""Alignment of large tensors in the data file, so that an engine can map them instead of copying."""

PROTOBUF_LIMIT = (1 << 31) - 1
"""The most bytes that one protobuf message, and so one .onnx file without external data, can hold."""

Progress = Callable[[str, int, int], None]


class CannotSave(Exception):
    """The model cannot be written where or as it was asked: what, where, what to do."""


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    inline_bytes: int = INLINE_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write `model` to `path`, with one `<path>.data` beside it when its weights are large.

    Lazy tensors are evaluated one after another, in graph order, and dropped once written; tensors that are
    files already are copied file to file. Both files are written under a temporary name (`<name>.partial`),
    flushed to the disk and renamed, the model last: a reader finds the old pair, the new pair or no model,
    never a mixture. The model in memory is left as it was. One writer per path at a time.

    Args:
        model: The model; its tensors stay as they are.
        path: Where the .onnx file goes; its folder must exist.
        inline_bytes: Weights of this size or more, summed, go to the data file.
        progress: Called with ("write weights", bytes done, bytes in all).

    Returns:
        Bytes written, both files together.

    Raises:
        CannotSave: When the model reads its weights from the very file that would be replaced, or its nodes
            hold more than one .onnx file can.
        OSError: As the file system says; nothing of the new files stays then.
    """
    target = Path(path)
    data = target.with_name(target.name + ".data")
    held = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = [value.const_value for value in held]
    _refuse_overwriting_the_source(tensors, data)
    outside = {
        id(tensor): tensor
        for tensor in tensors
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > SMALL_TENSOR_BYTES
    }
    total = sum(tensor.nbytes for tensor in outside.values())
    if total < inline_bytes:
        outside = {}

    model_partial, data_partial = (item.with_name(item.name + ".partial") for item in (target, data))
    with _removed_on_failure(model_partial, data_partial):
        placed: dict[int, ir.ExternalTensor] = {}
        if outside:
            with open(data_partial, "wb") as file:
                for tensor in outside.values():
                    placed[id(tensor)] = _append(file, tensor, data.name)
                    if progress is not None:
                        progress("write weights", min(file.tell(), total), total)
                _flush(file)
        with open(model_partial, "wb") as file:
            file.write(_serialize(model, held, placed))
            _flush(file)
        written = model_partial.stat().st_size + (data_partial.stat().st_size if outside else 0)
        if outside:
            if data.exists():
                target.unlink(missing_ok=True)
            data_partial.replace(data)
        model_partial.replace(target)
        if not outside:
            data.unlink(missing_ok=True)
    _flush_folder(target.parent)
    return written


def _refuse_overwriting_the_source(tensors: list[ir.TensorProtocol | None], data: Path) -> None:
    """A model loaded from the file that `save` would replace would lose its weights half way."""
    for tensor in tensors:
        if (
            isinstance(tensor, ir.ExternalTensor)
            and data.exists()
            and os.path.exists(tensor.path)
            and os.path.samefile(tensor.path, data)
        ):
            raise CannotSave(
                f"'{data}' holds weights that this model still reads (tensor '{tensor.name}'). "
                "Save under another name."
            )


def _append(file: BinaryIO, tensor: ir.TensorProtocol, location: str) -> ir.ExternalTensor:
    """Write one tensor at the end of the data file and return the reference to it."""
    alignment = PAGE_BYTES if tensor.nbytes >= 1 << 20 else 64
    offset = -(-file.tell() // alignment) * alignment
    file.write(bytes(offset - file.tell()))
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    if file.tell() - offset != tensor.nbytes:
        raise CannotSave(
            f"tensor '{tensor.name}' gave {file.tell() - offset} bytes, its type {tensor.dtype} and shape "
            f"{list(tensor.shape)} need {tensor.nbytes}. The source file may be truncated: fetch it again."
        )
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
    )


def _serialize(model: ir.Model, held: list[ir.Value], placed: dict[int, ir.ExternalTensor]) -> bytes:
    """The .onnx file's bytes, with the tensors in `placed` as references and all others inside."""
    kept = [value.const_value for value in held]
    try:
        for value, tensor in zip(held, kept, strict=True):
            if tensor is None:
                continue
            if id(tensor) in placed:
                reference = placed[id(tensor)]
                value.const_value = ir.ExternalTensor(
                    reference.location, reference.offset, reference.length, reference.dtype,
                    shape=reference.shape, name=value.name or "", doc_string=reference.doc_string,
                )  # fmt: skip
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    tensor.numpy().copy(), dtype=tensor.dtype, shape=tensor.shape, name=value.name
                )
                with contextlib.suppress(BufferError):  # a view that a pass still holds keeps its pages
                    tensor.release()
        proto = ir.to_proto(model)
        size = proto.ByteSize()
        if size > PROTOBUF_LIMIT:
            raise CannotSave(
                f"the graph without its weights takes {size} bytes, one .onnx file holds {PROTOBUF_LIMIT}. "
                "Turn large Constant nodes into initializers first."
            )
        serialized: bytes = proto.SerializeToString(deterministic=True)
        return serialized
    finally:
        for value, tensor in zip(held, kept, strict=True):
            value.const_value = tensor


@contextlib.contextmanager
def _removed_on_failure(*partials: Path) -> Iterator[None]:
    """Delete what was begun when the block does not end well (a full disk, Ctrl-C, a bad tensor)."""
    try:
        yield
    except BaseException:
        for partial in partials:
            partial.unlink(missing_ok=True)
        raise


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the renames themselves durable (POSIX; elsewhere a folder cannot be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
