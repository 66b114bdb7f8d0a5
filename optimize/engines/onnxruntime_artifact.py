"""What an ONNX Runtime build leaves behind: the graph, its weights, and a manifest that says where it may run."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Any

import onnx
import pydantic

from optimize.engines.onnxruntime_providers import ProviderName
from optimize.engines.onnxruntime_saturation import saturates
from optimize.errors import StageFailed, UsageError

ENGINE_FILE = "engine.onnx"
MANIFEST_FILE = "engine.json"

_ROUNDING_OPS = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
)
_LAYOUT_DOMAIN = "com.microsoft.nchwc"
"""Operators on blocked images; the block is as wide as the processor's vectors, and weights are stored in it."""

_VECTORS = ("avx2", "avx512f", "asimd", "sve")


class Manifest(pydantic.BaseModel):
    """Written beside the graph.

    Attributes:
        version: ONNX Runtime's.
        provider: Execution provider it was built for.
        level: Graph optimisation level that was used.
        disabled_optimizers: Graph optimisers that were left out.
        is_optimized: Whether the saved graph is the optimised one.
        vectors: Vector instructions of the processor that it is bound to; None when any will do.
        files: Bytes of every file of the artifact.
        is_widened: Whether it was built where products of 8 bits saturate, so that weights beyond ±64 are uint8.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    version: str
    provider: ProviderName
    level: str
    disabled_optimizers: tuple[str, ...]
    is_optimized: bool
    vectors: tuple[str, ...] | None
    files: dict[str, int]
    is_widened: bool = False


def write_manifest(path: Path, **fields: Any) -> Manifest:
    """Write the manifest of the artifact whose main file is `path`."""
    files = {
        file.name: file.stat().st_size
        for file in sorted(path.parent.iterdir())
        if file.is_file() and file.name != MANIFEST_FILE
    }
    vectors = processor_vectors() if _has_layout(path) else None
    manifest = Manifest(version=version(), vectors=vectors, files=files, is_widened=saturates(), **fields)
    (path.parent / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(artifact: Path, provider: ProviderName) -> Manifest | None:
    """The manifest of a build, checked against this machine; None for a file that was not built here.

    Raises:
        StageFailed: When a file is missing or damaged, or another version, provider or processor is at hand.
    """
    path = artifact.parent / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise StageFailed(
            f"{artifact.name}: '{MANIFEST_FILE}' beside it is damaged or of another version. Build it again."
        ) from error
    if artifact.name not in manifest.files:
        return None
    if manifest.version != version():
        raise StageFailed(
            f"{artifact.name}: made by onnxruntime {manifest.version}, this is {version()}.",
            hint="Build it again: optimised graphs hold operators private to a version.",
        )
    if manifest.provider != provider:
        raise StageFailed(
            f"{artifact.name}: built for provider '{manifest.provider}', asked to open it with '{provider}'."
        )
    if manifest.vectors is not None and manifest.vectors != processor_vectors():
        theirs, ours = (" and ".join(names) for names in (manifest.vectors, processor_vectors()))
        raise StageFailed(
            f"{artifact.name}: its weights are laid out for a processor with {theirs}; this one has {ours}.",
            hint="Build it here, or with engine.graph_optimization: extended, which runs anywhere.",
        )
    for file, size in manifest.files.items():
        there = artifact.parent / file
        if not there.is_file() or there.stat().st_size != size:
            raise StageFailed(f"{artifact.name}: its file '{file}' is missing or damaged. Build it again.")
    return manifest


def copy_model(model: Path, path: Path) -> None:
    """Copy an ONNX file and the data files it names, without reading them into memory.

    Raises:
        UsageError: When a data file lies outside the model's folder.
    """
    shutil.copyfile(model, path)
    for tensor in onnx.load(model, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            copy = path.parent / entry.value
            if not copy.resolve().is_relative_to(path.parent.resolve()):
                raise UsageError(f"{model.name}: its data file '{entry.value}' lies outside its folder.")
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.parent / entry.value, copy)


def rounds(model: Path) -> bool:
    """Whether the graph rounds to few bits somewhere."""
    loaded = onnx.load(model, load_external_data=False)
    nodes = [*loaded.graph.node, *(node for function in loaded.functions for node in function.node)]
    return any(node.op_type in _ROUNDING_OPS for node in nodes)


def integer_nodes(path: Path) -> frozenset[str]:
    """Nodes whose outputs are all integers or booleans: shape arithmetic, which belongs on the CPU."""
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    return frozenset(
        node.name for node in graph.node if all(kinds.get(name) in whole for name in node.output if name)
    )


def version() -> str:
    """ONNX Runtime's version, from whichever distribution brought it."""
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-trt-rtx"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import onnxruntime

    return str(onnxruntime.__version__)


def processor_vectors() -> tuple[str, ...]:
    """Vector instruction sets of this processor that decide a blocked layout, else the machine's type."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return (platform.machine(),)
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return tuple(name for name in _VECTORS if name in flags) or (platform.machine(),)


def _has_layout(path: Path) -> bool:
    return any(node.domain == _LAYOUT_DOMAIN for node in onnx.load(path, load_external_data=False).graph.node)
