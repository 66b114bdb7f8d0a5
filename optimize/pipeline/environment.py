"""What this machine and its libraries are: for keys, for reports and for `optimize doctor`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from optimize.facts import Environment
from optimize.targets import loading
from passes.cores import usable_cores

REPORTED = (
    "model-optimize",
    "numpy",
    "ml_dtypes",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx",
    "onnx-graphsurgeon",
    "polygraphy",
)


@functools.cache
def version(distribution: str) -> str | None:
    """An installed distribution's version, or None; imports nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    return {name: found for name in distributions if (found := version(name)) is not None}


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """The CPU's name and the instruction sets that matter for quantized models."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    return names.get("model name") or platform.machine(), loading.cpu_instructions()


@functools.cache
def devices() -> tuple[str, ...]:
    """NVIDIA devices by name and driver, through NVML when its Python package is installed."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            found.append(
                f"{_text(pynvml.nvmlDeviceGetName(handle))}, compute capability {major}.{minor}, driver {driver}"
            )
        return tuple(found)
    finally:
        pynvml.nvmlShutdown()


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe() -> Environment:
    """Everything a report says of where it was made."""
    name, instructions = processor()
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=name,
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        libraries=versions(REPORTED),
        devices=devices(),
        instructions=instructions,
    )


def identity() -> dict[str, object]:
    """What measured times and built engines depend on."""
    name, instructions = processor()
    return {
        "processor": name,
        "instructions": list(instructions),
        "cores": os.cpu_count(),
        "devices": list(devices()),
    }


@functools.cache
def code_digest() -> str:
    """sha256 over this project's own code that can change a stored result."""
    import optimize
    import passes
    from optimize.pipeline import digests

    found = []
    for package, left_out in ((optimize, ("cli", "report", "bundle")), (passes, ())):
        root = Path(str(package.__file__)).parent
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
            relative = path.relative_to(root)
            if relative.parts[0] not in left_out:
                found.append([str(relative), digests.of_file(path)])
    return digests.of_data(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
