"""Runs an `ir.Model` as it is written, with any inner values as further outputs, weights copied once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from optimize.engines.onnxruntime_session import OnnxRuntimeSession, Settings, as_written
from optimize.errors import UsageError
from passes.base import Arrays

IN_MEMORY_BYTES = 256 << 20
"""Models with more weights than this go through a file, where ONNX Runtime maps them instead of copying."""

SMALL_BYTES = 1024
"""Weights up to this size stay in the graph's own file: shape inference reads them there."""


class GraphRunner:
    """Runs models in floating point without graph optimisation; satisfies `passes.base.Runner`.

    The last session is kept, so that running the same graph on many batches opens it once.

    Args:
        threads: Threads within an operator; None: one per usable core.
        scratch: Folder for the files of large models. On the file system of the model's own data its
            weights are linked, not written again.
    """

    def __init__(self, threads: int | None = None, scratch: Path | None = None) -> None:
        self._threads = threads
        self._scratch = scratch
        self._key: tuple[Any, ...] | None = None
        self._open = contextlib.ExitStack()
        self._session: OnnxRuntimeSession | None = None
        self._held: list[Any] = []

    def __call__(
        self, model: ir.Model, feeds: Arrays, outputs: Sequence[str] = ()
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run once. `outputs` names any values of the main graph; empty means the graph's outputs.

        Raises:
            UsageError: When a name is no value of the main graph, or the feeds do not fit.
            StageFailed: When ONNX Runtime cannot run the graph.
        """
        names = list(dict.fromkeys(outputs)) or [str(value.name) for value in model.graph.outputs]
        given, inner = self._split(model, feeds, names)
        results: dict[str, np.ndarray[Any, Any]] = dict(given)
        if inner:
            session = self._session_for(model, inner)
            inputs = {spec.name: feeds[spec.name] for spec in session.inputs if spec.name in feeds}
            results.update(session.run(inputs))
        return {name: results[name] for name in names}

    def close(self) -> None:
        """Let go of the kept session and its files."""
        self._session, self._key, self._held = None, None, []
        self._open.close()

    def _split(
        self, model: ir.Model, feeds: Arrays, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray[Any, Any]], list[str]]:
        """What needs no run (inputs, weights), and the names of computed values."""
        computed = {output.name for node in model.graph for output in node.outputs}
        inputs = {value.name for value in model.graph.inputs}
        given: dict[str, np.ndarray[Any, Any]] = {}
        inner = []
        for name in names:
            weight = model.graph.initializers.get(name)
            if name in computed:
                inner.append(name)
            elif name in inputs and name in feeds:
                given[name] = feeds[name]
            elif weight is not None and weight.const_value is not None:
                given[name] = weight.const_value.numpy()
            else:
                raise UsageError(f"the main graph has no value called '{name}'.")
        return given, inner

    def _session_for(self, model: ir.Model, names: Sequence[str]) -> OnnxRuntimeSession:
        weights = [value.const_value for value in model.graph.initializers.values()]
        with _weights_elsewhere(model):
            proto = ir.to_proto(model)
        digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
        key = (digest, tuple(names), *(id(weight) for weight in weights))
        if self._session is not None and key == self._key:
            return self._session
        self.close()
        # holding the tensors keeps their ids from being given to others while the key lives
        self._held = weights
        self._session = self._open.enter_context(self.opened(model, names))
        self._key = key
        return self._session

    @contextlib.contextmanager
    def opened(self, model: ir.Model, outputs: Sequence[str] = ()) -> Iterator[OnnxRuntimeSession]:
        """A session over the model as it is now, giving exactly `outputs`, for streaming many batches."""
        names = list(outputs) or [str(value.name) for value in model.graph.outputs]
        settings = Settings(threads=self._threads)
        # a graph in memory has no folder that data files could lie in
        if weight_bytes(model) <= IN_MEMORY_BYTES and not _has_data_files(model):
            proto = ir.to_proto(model)
            _expose(proto, names)
            with OnnxRuntimeSession(proto.SerializeToString(), as_written(settings, proto)) as session:
                yield session
            return
        # packed copies of weights would double the memory of a model that is run a few times only
        settings = Settings(threads=self._threads, config={"session.disable_prepacking": "1"})
        with tempfile.TemporaryDirectory(prefix="graph-", dir=self._scratch) as folder:
            path = write_linked(model, Path(folder), names)
            opening = OnnxRuntimeSession(path, as_written(settings, path))
        # The session has its data mapped; a link that stayed would make onnx_ir refuse the model's own data file.
        with opening as session:
            yield session


def runner(threads: int | None = None, scratch: Path | None = None) -> GraphRunner:
    """The runner that passes get in their context."""
    return GraphRunner(threads, scratch)


def _has_data_files(model: ir.Model) -> bool:
    return any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all weights of the main graph, without reading one."""
    return sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )


def write_linked(model: ir.Model, folder: Path, outputs: Sequence[str]) -> Path:
    """Write `model` into `folder` with hard links to the data files its weights already lie in.

    Weights that lie in no file, or on another file system, are written out one at a time. The links are made
    last: weights computed from a data file are still read here, and onnx_ir refuses files that have links.
    """
    links: dict[Path, str] = {}
    data = folder / "model.data"
    held: dict[ir.Value, ir.TensorProtocol | None] = {}
    try:
        with data.open("wb") as stream:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                if tensor.nbytes <= SMALL_BYTES:
                    if isinstance(tensor, ir.ExternalTensor):
                        held[value] = tensor
                        value.const_value = ir.Tensor(tensor.numpy().copy(), tensor.dtype, name=str(value.name))
                    continue
                location = _linked(tensor, folder, links) if isinstance(tensor, ir.ExternalTensor) else None
                if isinstance(tensor, ir.ExternalTensor) and location is not None:
                    offset = tensor.offset or 0
                else:
                    location, offset = data.name, -(-stream.tell() // 4096) * 4096
                    stream.seek(offset)
                    stream.write(tensor.tobytes())
                held[value] = tensor
                value.const_value = ir.ExternalTensor(
                    location,
                    offset,
                    tensor.nbytes,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=str(value.name),
                    base_dir=folder,
                )
        proto = ir.to_proto(model)
    finally:
        for value, tensor in held.items():
            value.const_value = tensor
    for source, name in links.items():
        os.link(source, folder / name)
    _expose(proto, outputs)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _linked(tensor: ir.ExternalTensor, folder: Path, links: dict[Path, str]) -> str | None:
    """The name that the tensor's data file will have in `folder`, or None where it cannot be linked."""
    source = Path(tensor.path).resolve()
    if source not in links:
        name = f"linked-{len(links)}.data"
        try:
            os.link(source, folder / name)
        except OSError:
            return None
        (folder / name).unlink()
        links[source] = name
    return links[source]


@contextlib.contextmanager
def _weights_elsewhere(model: ir.Model) -> Iterator[None]:
    """Within it the model can be serialised without its weights' bytes."""
    held = {
        value: value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > SMALL_BYTES
    }
    try:
        for value, tensor in held.items():
            value.const_value = ir.ExternalTensor(
                "elsewhere",
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
            )
        yield
    finally:
        for value, tensor in held.items():
            value.const_value = tensor


def _expose(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make `names` the graph's outputs; ONNX Runtime infers the types of those that were none."""
    kept = {output.name: output for output in proto.graph.output}
    outputs = [kept.get(name) or onnx.ValueInfoProto(name=name) for name in names]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
