"""ONNX Runtime's execution providers: their names, options, and what is missing for one to work here."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
}
"""The distribution whose library holds the provider."""

PLUGINS: dict[ProviderName, tuple[str, str]] = {
    "tensorrt-rtx": ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
}
"""Providers that come as plugins of ONNX Runtime: module and distribution."""

_LIBRARIES: dict[str, str] = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
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
    if provider in PLUGINS and PROVIDERS[provider] not in onnxruntime.get_available_providers():
        return _missing_plugin(*PLUGINS[provider])
    package = _PACKAGES.get(provider, f"onnxruntime with {PROVIDERS[provider]}")
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
    library = _LIBRARIES.get(provider)
    return _missing_device() or (_missing_library(library, Path(onnxruntime.__file__).parent) if library else None)


def plugin_of(name: str) -> str | None:
    """The module of the plugin that the provider of this name comes from; None for one that is built in."""
    import onnxruntime

    if name in onnxruntime.get_available_providers():
        return None
    return next((PLUGINS[provider][0] for provider in PLUGINS if PROVIDERS[provider] == name), None)


@functools.cache
def plugin_devices(module: str) -> tuple[Any, ...]:
    """The devices that a plugin runs on, its library registered with ONNX Runtime once per process.

    Raises:
        Exception: ONNX Runtime's or the loader's, when the plugin cannot be loaded; they share no other base.
    """
    import onnxruntime

    plugin = importlib.import_module(module)
    before = frozenset(device.ep_name for device in onnxruntime.get_ep_devices())
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    return tuple(device for device in onnxruntime.get_ep_devices() if device.ep_name not in before)


def _missing_plugin(module: str, distribution: str) -> str | None:
    import onnxruntime

    if importlib.util.find_spec(module) is None:
        return f"its plugin of ONNX Runtime is not installed. pip install {distribution}"
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return f"onnxruntime {onnxruntime.__version__} takes no plugins. pip install --upgrade onnxruntime"
    absent = _missing_device()
    if absent:
        return absent
    found = _version(distribution) or "of unknown version"
    try:
        devices = plugin_devices(module)
    except Exception as error:  # ONNX Runtime's classes share no base but Exception
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"the plugin {distribution} {found} cannot be loaded ({why}). Install what it names."
    if not devices:
        return (
            f"the plugin {distribution} {found} finds no GPU that it runs on. Install a version that has this one."
        )
    return None


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
