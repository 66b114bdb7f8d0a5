"""Finding TensorRT: `tensorrt`, else `tensorrt_rtx`. What differs between the two is data, here."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
from collections.abc import Mapping
from typing import Any

from optimize.errors import BackendMissing


@dataclasses.dataclass(frozen=True)
class Flavour:
    """One of the libraries that share TensorRT's Python interface.

    Attributes:
        module: Import name.
        title: As reports spell it.
        package: What to install.
        builds_without_device: Whether engines can be built where no GPU is.
        is_portable: Whether a plan runs on other compute capabilities than the builder's.
        times_tactics: Whether building times kernels, so that a timing cache is worth keeping.
        ignored: Options it takes without effect, each with the reason.
        impossible: Options it cannot serve, each with the reason.
        has_int8_convolutions: Whether a convolution on INT8 data and weights builds.
        needs_device: Options that need a GPU while building, where the rest of building does not.
        parser_opens: What its ONNX parser opens by name before it adds a plugin's layer.
        stores_unscaled_sums: Whether products of quantized numbers in FP16 can overflow before they are scaled.
        emulated: By compute capability, types of data and weights that it accepts and emulates, slower than FP16.
    """

    module: str
    title: str
    package: str
    builds_without_device: bool = False
    is_portable: bool = False
    times_tactics: bool = True
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    impossible: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs_device: frozenset[str] = frozenset()
    has_int8_convolutions: bool = True
    parser_opens: str | None = None
    stores_unscaled_sums: bool = False
    emulated: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)


FLAVOURS = (
    Flavour(
        module="tensorrt",
        title="TensorRT",
        package="tensorrt",
        impossible={"compute_capabilities": "it builds for the GPU that is here"},
    ),
    Flavour(
        module="tensorrt_rtx",
        title="TensorRT for RTX",
        package="tensorrt-rtx",
        builds_without_device=True,
        is_portable=True,
        times_tactics=False,
        parser_opens="libtensorrt_rtx.so",
        # Each seen with version 1.6.1: a warning ("… is unsupported in TensorRT-RTX"), a plan of the same
        # size whatever the value, or a failed build.
        ignored={
            "hardware_compatibility_level": "its plans already run on every GPU from Ampere on",
            "builder_optimization_level": "it compiles kernels on the device that runs the plan",
            "tiling_optimization_level": "it compiles kernels on the device that runs the plan",
            "timing_cache": "it times nothing while building",
        },
        impossible={"version_compatible": "it ships no lean runtime to put into the plan"},
        needs_device=frozenset({"refit", "strip_plan"}),
        # 1.6.1: "CHECK(dtype == myelinTypeFloat || Half || BF16 || FP8E4M3)", whatever the shapes.
        has_int8_convolutions=False,
        # 1.6.1 on an H200: docs/gpu/2026-11-29-scales.json.
        stores_unscaled_sums=True,
        # 1.6.1 on an H200: 2.0 and 5.9 times the time of FP16, docs/gpu/2026-11-28-eight-bits.json.
        emulated={"9.0": frozenset({"int8", "fp8"})},
    ),
)


@dataclasses.dataclass(frozen=True)
class Library:
    """An imported TensorRT.

    Attributes:
        api: The module itself.
        flavour: Which of the libraries it is.
        version: Its version, "11.1.0.106".
    """

    api: Any
    flavour: Flavour
    version: str

    @property
    def title(self) -> str:
        """ "TensorRT for RTX 1.6.1.120"."""
        return f"{self.flavour.title} {self.version}"


@functools.cache
def load() -> Library:
    """The first TensorRT that imports.

    Raises:
        BackendMissing: When none does, with the reason of one that is there but broken.
    """
    broken = ""
    for flavour in FLAVOURS:
        try:
            api = importlib.import_module(flavour.module)
        except ModuleNotFoundError as error:
            if error.name != flavour.module:
                broken = broken or f" ('{flavour.module}' is installed but: {error})"
            continue
        except (ImportError, OSError) as error:
            broken = broken or f" ('{flavour.module}' is installed but: {error})"
            continue
        if isinstance(api, types.ModuleType) and hasattr(api, "Builder"):
            return Library(api, flavour, str(api.__version__))
        broken = broken or f" ('{flavour.module}' is there but is not TensorRT)"
    names = " or ".join(f"`pip install {flavour.package}`" for flavour in FLAVOURS)
    raise BackendMissing(f"TensorRT is not here{broken}.", hint=f"Install it: {names}.")
