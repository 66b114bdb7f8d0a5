"""The built-in plugin, `plugins: [builtin]`: what it needs here, what it serves, and its registration."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from optimize.engines import tensorrt_plugin_layer
from optimize.engines.tensorrt_library import Library
from optimize.errors import BackendMissing, StageFailed
from passes.names import module_of

BUILTIN = "builtin"
INSTALL = 'pip install "model-optimize[tensorrt-plugin]"'

_ADDRESSABLE = 1 << 31
"""Elements that the kernels' 32-bit offsets reach."""


_registered: set[str] = set()
"""Modules whose registry has the layer."""


def register(library: Library) -> None:
    """Make the layer known to this TensorRT, once a process.

    Raises:
        StageFailed: When a plugin library brought a layer of the same name.
    """
    if library.flavour.module in _registered:
        return
    made = tensorrt_plugin_layer.creator(library.api)
    if not library.api.get_plugin_registry().register_creator(made, tensorrt_plugin_layer.NAMESPACE):
        raise StageFailed(
            f"a plugin library already brings a layer {tensorrt_plugin_layer.NAME}.",
            hint=f"Name either that library or `{BUILTIN}` with `plugins` under `engine:`.",
        )
    _registered.add(library.flavour.module)


def require_runtime() -> None:
    """Refuse to run where the kernels cannot be compiled.

    Raises:
        BackendMissing: Naming the package.
    """
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise BackendMissing(
                f"the built-in TensorRT plugin runs with {package}, which is not here.", hint=INSTALL
            )
    import torch

    if not torch.cuda.is_available():
        raise BackendMissing(
            f"the built-in TensorRT plugin runs with torch for CUDA, and torch {torch.__version__} sees no GPU.",
            hint="Install a torch built for CUDA.",
        )


def require_parser_library(library: Library) -> None:
    """Refuse to parse where the parser would end the process.

    TensorRT for RTX's ONNX parser opens `libtensorrt_rtx.so` before it adds a plugin's layer, and calls
    std::terminate without it (1.6.1). The library itself is there as `libtensorrt_rtx.so.1`.

    Raises:
        BackendMissing: With the commands that mend it.
    """
    name = library.flavour.parser_opens
    if name is None:
        return
    try:
        ctypes.CDLL(name)
    except OSError as error:
        folder = next(_folders(f"{name}.1"), "FOLDER")
        link = "" if (Path(folder) / name).exists() else f"`ln -s {name}.1 {folder}/{name}` and "
        raise BackendMissing(
            f"{library.flavour.title}'s ONNX parser needs {name} for layers from plugins, and it is not found.",
            hint=f"Run {link}`export LD_LIBRARY_PATH={folder}:$LD_LIBRARY_PATH`.",
        ) from error


def _folders(name: str) -> Iterator[str]:
    """Where this process has a library of that name open."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.is_file() else ():
        path = line[line.find("/") :] if "/" in line else ""
        if Path(path).name.startswith(name):
            yield str(Path(path).parent)


def check_model(library: Library, model: ir.Model, plugins: Sequence[str]) -> None:
    """Refuse, in one sentence, products in few bits that no layer serves.

    Raises:
        StageFailed: Naming the node.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == tensorrt_plugin_layer.NAME and node.domain == "com.microsoft":
            fault = _fault(library, node, plugins)
            if fault is not None:
                module = module_of(node)
                place = f"node '{node.name}' (MatMulNBits)" + (f" of module '{module}'" if module else "")
                said, hint = fault
                raise StageFailed(f"{library.flavour.title} cannot build {place}: {said}", hint=hint)


def _fault(library: Library, node: ir.Node, plugins: Sequence[str]) -> tuple[str, str] | None:
    numbers = {name: node.attributes[name].as_int() for name in ("K", "N", "bits") if name in node.attributes}
    bits = numbers.get("bits", 4)
    if BUILTIN not in plugins:
        if bits != 8 or plugins:
            return None
        return "8-bit blocks are a layer of the built-in plugin.", f"Write `engine: {{plugins: [{BUILTIN}]}}`."
    if bits != 8:
        return f"the built-in plugin takes 8 bits, this node has {bits}.", "Quantize it with quantize.int8_blocks."
    if any(value is not None for value in node.inputs[3:]):
        return "the built-in plugin takes no zero points and no bias.", "Add the bias in a node of its own."
    scales = node.inputs[2]
    if scales is None or scales.dtype != ir.DataType.FLOAT16:
        found = scales.dtype.name.lower() if scales is not None and scales.dtype is not None else "unknown"
        return (
            f"the built-in plugin takes float16, its scales are {found}.",
            "Put cast.fp16 before the quantization.",
        )
    if numbers["K"] * numbers["N"] >= _ADDRESSABLE:
        return (
            f"the built-in plugin takes weights of fewer than 2³¹ elements, not {numbers['K']} × {numbers['N']}.",
            "",
        )
    return None
