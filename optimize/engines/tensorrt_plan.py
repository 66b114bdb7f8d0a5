"""The plan file and the manifest beside it, which says whether a plan may be loaded here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from optimize.engines.base import TensorSpec
from optimize.engines.tensorrt_device import Device
from optimize.engines.tensorrt_library import FLAVOURS, Library
from optimize.engines.tensorrt_options import Shapes
from optimize.errors import StageFailed

PLAN = "engine.plan"
SUFFIX = ".json"
REBUILD = "Build it again with the TensorRT that is here."


class Manifest(pydantic.BaseModel):
    """What must hold for a plan to load.

    Attributes:
        flavour: Import name of the library that made it.
        version: Of that library.
        sha256: Of the plan's bytes, hexadecimal.
        model: File name of the ONNX it was built from, and its digest.
        device: The GPU it was built on; None when it was built without one.
        hardware_compatibility_level: Other GPUs it was asked to run on.
        compute_capabilities: What it was built for, where that was limited; empty: every GPU it can serve.
        is_stripped: Whether its weights must be put in before it runs.
        plugins: File names of the plugin libraries it was built with; "builtin" for the product's own.
        profiles: Shapes per optimization profile; empty when every shape is fixed.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    manifest_version: Literal[1] = 1
    flavour: str
    version: str
    sha256: str
    size_bytes: int
    model: str
    model_sha256: str
    device: Device | None
    hardware_compatibility_level: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    is_stripped: bool = False
    plugins: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, Shapes], ...] = ()

    @property
    def title(self) -> str:
        """ "TensorRT for RTX 1.6.1.120"."""
        titles = {flavour.module: flavour.title for flavour in FLAVOURS}
        return f"{titles.get(self.flavour, self.flavour)} {self.version}"


def manifest_path(plan: Path) -> Path:
    """engine.plan → engine.plan.json."""
    return plan.with_name(plan.name + SUFFIX)


def digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(directory: Path, plan: Any, manifest: Mapping[str, Any]) -> tuple[Path, Manifest]:
    """Write the plan, then its manifest; both or nothing.

    Args:
        plan: TensorRT's host memory (a buffer of bytes).
        manifest: The manifest's fields but for digest and size.

    Raises:
        StageFailed: When the disk is full or the folder cannot be written.
    """
    path = directory / PLAN
    data = memoryview(plan)
    complete = Manifest(sha256=hashlib.sha256(data).hexdigest(), size_bytes=data.nbytes, **manifest)
    contents: Sequence[tuple[Path, Any]] = (
        (path, data),
        (manifest_path(path), complete.model_dump_json(indent=2).encode()),
    )
    made: list[Path] = []
    try:
        for target, content in contents:
            made.append(target.with_name(f".{target.name}.part"))
            made[-1].write_bytes(content)
        for target, _ in contents:
            os.replace(target.with_name(f".{target.name}.part"), target)
            made.append(target)
    except OSError as error:
        for file in made:
            file.unlink(missing_ok=True)
        raise StageFailed(
            f"the plan ({data.nbytes:,} bytes) cannot be written to {directory}: {error.strerror}.",
            hint="Free space there or choose another output folder.",
        ) from error
    return path, complete


def read(plan: Path) -> Manifest:
    """The manifest of an undamaged plan.

    Raises:
        StageFailed: When the plan or its manifest is missing, damaged or changed.
    """
    beside = manifest_path(plan)
    if not plan.is_file():
        raise StageFailed(f"there is no plan at {plan}.")
    if not beside.is_file():
        raise StageFailed(
            f"{plan.name} has no {beside.name} beside it, so nothing says what it was built for.",
            hint="Copy both files together, or build the plan again.",
        )
    try:
        manifest = Manifest.model_validate_json(beside.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StageFailed(
            f"{beside.name} is no manifest of a plan: {where or 'file'}: {first['msg']}.",
            hint="Build the plan again.",
        ) from error
    size = plan.stat().st_size
    if size != manifest.size_bytes:
        raise StageFailed(
            f"{plan.name} is damaged: it has {size:,} bytes, its manifest says {manifest.size_bytes:,}.",
            hint="Copy it again or build it again.",
        )
    if digest(plan) != manifest.sha256:
        raise StageFailed(
            f"{plan.name} was changed after it was built: its sha256 is not its manifest's.",
            hint="Copy it again or build it again.",
        )
    return manifest


def check_library(manifest: Manifest, library: Library) -> None:
    """Refuse, in one sentence, a plan that this library cannot load.

    Raises:
        StageFailed: Naming both sides.
    """
    same_major = manifest.version.split(".")[0] == library.version.split(".")[0]
    if manifest.flavour != library.flavour.module:
        raise StageFailed(f"the plan was built by {manifest.title}, here is {library.title}.", hint=REBUILD)
    if manifest.version != library.version and not (manifest.version_compatible and same_major):
        raise StageFailed(f"the plan was built by {manifest.title}, here is {library.title}.", hint=REBUILD)


def check_device(manifest: Manifest, library: Library, device: Device) -> None:
    """Refuse, in one sentence, a plan that this device cannot run.

    Raises:
        StageFailed: Naming both sides.
    """
    if library.flavour.is_portable:
        built_for = manifest.compute_capabilities
        if built_for and device.compute_capability not in built_for:
            raise StageFailed(
                f"the plan was built for compute capability {' and '.join(built_for)}, "
                f"here is {device.name} ({device.compute_capability}).",
                hint="Build it here, or without `compute_capabilities`.",
            )
        return
    if manifest.device is None:
        return
    built, here = manifest.device.compute_capability, device.compute_capability
    fits = {
        "none": (manifest.device.name, built) == (device.name, here),
        "same_compute_capability": built == here,
        "ampere_plus": float(here) >= 8.0,
    }
    if not fits.get(manifest.hardware_compatibility_level, False):
        raise StageFailed(
            f"the plan was built for {manifest.device.name} (compute capability {built}), "
            f"here is {device.name} ({here}).",
            hint="Build it here, or with a wider hardware_compatibility_level.",
        )
