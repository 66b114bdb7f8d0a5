"""ONNX Runtime's execution providers: their names, options, and what is missing for one to work here."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

ProviderName = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]

PROVIDERS: dict[ProviderName, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}

COMPILING: tuple[ProviderName, ...] = ("tensorrt", "tensorrt-rtx")
"""Providers that compile parts of the graph into engines of their own, which no saved ONNX graph can hold."""

_PACKAGES: dict[str, str] = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "tensorrt-rtx": "onnxruntime-trt-rtx",
}
"""The distribution whose library holds the provider."""

_LIBRARIES: dict[str, str] = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
    "tensorrt-rtx": "libonnxruntime_providers_nv_tensorrt_rtx.so",
}


def provider_list(provider: ProviderName, options: Mapping[str, str]) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Providers to ask for, most wanted first. TensorRT's leftovers go to CUDA, everything's to the CPU."""
    if provider == "cpu":
        return ((PROVIDERS["cpu"], options),)
    wanted = [(PROVIDERS[provider], options)]
    if provider == "tensorrt":
        wanted.append((PROVIDERS["cuda"], {}))
    return (*wanted, (PROVIDERS["cpu"], {}))


def missing(provider: ProviderName) -> str | None:
    """What keeps `provider` from working on this machine, with what to install; None when nothing does."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}). pip install onnxruntime"
    if provider == "cpu":
        return None
    package = _PACKAGES[provider]
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        if _version("onnxruntime") and _version(package):
            return (
                f"both onnxruntime and {package} are installed and the CPU build shadows the other. "
                f"pip uninstall -y onnxruntime {package} && pip install {package}"
            )
        return (
            f"onnxruntime {onnxruntime.__version__} is built without {PROVIDERS[provider]}. "
            f"pip uninstall -y onnxruntime && pip install {package}"
        )
    return _missing_device() or _missing_library(_LIBRARIES[provider], Path(onnxruntime.__file__).parent)


def _missing_device() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not found. Install the driver, or pass the device in."
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver finds no usable device (cuInit returned {code}). Check `nvidia-smi`."
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "the NVIDIA driver reports no device. Check `nvidia-smi`."


def _missing_library(name: str, package: Path) -> str | None:
    """The shared library that the provider's own library lacks, in the loader's words."""
    folder = package / "capi"
    if not (folder / name).exists():
        return None
    try:
        import onnxruntime

        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        shared = folder / "libonnxruntime_providers_shared.so"
        if shared.exists():
            ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / name))
    except OSError as error:
        return f"{name} cannot be loaded: {error}. Install the CUDA, cuDNN or TensorRT library it names."
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
