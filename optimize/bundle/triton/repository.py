"""Writes the repository: `models/<name>/config.pbtxt`, versions, warm-up data, ensemble steps, a container file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from optimize.bundle import building, verifying
from optimize.bundle import manifest as manifests
from optimize.bundle.building import quiet
from optimize.bundle.manifest import Manifest
from optimize.bundle.triton import batching, config, container, engine_model, text_model
from optimize.bundle.triton.options import ServingOptions, model_name
from optimize.bundle.triton.tensors import Interface, interface
from optimize.engines import registry
from optimize.engines.base import Progress
from optimize.errors import UsageError
from optimize.recipe import resolving
from optimize.report.model import Report


def write(
    run_directory: Path,
    destination: Path,
    options: ServingOptions,
    *,
    measure: bool = False,
    allow_failed: bool = False,
    allow_libraries: bool = False,
    progress: Progress = quiet,
) -> Manifest:
    """Write a repository, or add a version to one that this wrote before.

    Args:
        run_directory: The output folder of a finished `optimize run`.
        destination: A new folder; or an existing repository of the same model without this version.
        measure: Time the engine at several batch sizes here, and prefer those that pay.
        allow_libraries: Whether timing may load native libraries that the run names.
        progress: Told what is being done.

    Raises:
        UsageError: When the run may not be handed over, the backend cannot serve it, or the version exists.
        BackendMissing: When tritonclient is missing, or the engine cannot run here although it is to be measured.
    """
    progress("checking the run's files", 0, 0)
    report = building.finished(run_directory, allow_failed=allow_failed)
    io = interface(report, options.max_batch)
    curve: dict[int, float] = {}
    if measure and io.max_batch:
        curve = _measure(report, run_directory, io, progress, allow_libraries=allow_libraries)
        chosen = batching.preferred(curve)
        options = dataclasses.replace(
            options, preferred_batches=chosen, queue_delay_us=batching.queue_delay_us(curve, chosen)
        )
    if destination.exists():
        return _add_version(report, run_directory, destination, io, options)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        name = model_name(options, report.name)
        engine_model.write(report, run_directory, partial / "models" / name, name, io, options)
        if options.tokenizer is not None:
            text_model.write(report, partial / "models", name, io, options)
        (partial / "Containerfile").write_text(container.render(report, name, options), encoding="utf-8")
        if curve:
            text = json.dumps({str(size): round(latency, 4) for size, latency in curve.items()}, indent=2)
            (partial / "batch-latency-ms.json").write_text(text + "\n", encoding="utf-8")
        manifest = _account(report, run_directory, partial)
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _measure(
    report: Report, run_directory: Path, io: Interface, progress: Progress, *, allow_libraries: bool
) -> dict[int, float]:
    section = report.recipe.get("engine", {})
    code = registry.read_options(section).native_code()
    if code and not allow_libraries:
        raise UsageError(
            f"{run_directory}: timing its engine here loads libraries that the run names: {'; '.join(code)}.",
            hint="Pass --allow-libraries if you trust the run, or --no-measure.",
        )
    engine = registry.create(section, _base(run_directory))
    with engine.open(run_directory / _engine_file(report)) as session:
        return batching.curve(session, io, progress)


def _base(run_directory: Path) -> Path:
    """The folder that paths in the run's recipe start from."""
    named = run_directory / resolving.BASE_FILE
    lines = named.read_text(encoding="utf-8").splitlines() if named.is_file() else []
    return run_directory / lines[0] if lines else run_directory


def _engine_file(report: Report) -> str:
    return next(item.file for item in report.artifacts if item.label == "engine")


def _add_version(
    report: Report, run_directory: Path, destination: Path, io: Interface, options: ServingOptions
) -> Manifest:
    # A server that may write there leaves Python's caches beside its models.
    for cache in sorted(destination.glob("models/*/*/__pycache__")):
        shutil.rmtree(cache)
    found = verifying.verify(destination)
    if found.problems:
        raise UsageError(f"{destination}: damaged, so no version is added: {found.problems[0]}.")
    name = model_name(options, report.name)
    folder = destination / "models" / name
    if not folder.is_dir():
        raise UsageError(f"{destination} serves no model called '{name}'.", hint="Name a new folder.")
    if (folder / str(options.version)).exists():
        raise UsageError(f"{folder}: version {options.version} exists.", hint="Give a higher --model-version.")
    partial = destination / f".{name}.{options.version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        engine_model.write(report, run_directory, partial, name, io, options)
        if _served(partial / "config.pbtxt") != _served(folder / "config.pbtxt"):
            raise UsageError(
                f"{folder}: version {options.version} has other inputs, outputs, batch or backend than those "
                "there.",
                hint="Serve it under another --name.",
            )
        if options.versions_kept is not None:
            # Before the version, so that a server that polls does not drop an old one in between.
            _keep_versions(folder / "config.pbtxt", options.versions_kept)
        # The whole version appears at once: a server that polls never sees a part of it.
        os.rename(partial / str(options.version), folder / str(options.version))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _account(report, run_directory, destination)


def _keep_versions(path: Path, count: int) -> None:
    """Change how many versions a configuration serves; nothing is written when it says so already."""
    from google.protobuf import text_format

    parsed = text_format.Parse(path.read_text(encoding="utf-8"), config.protobuf().ModelConfig())
    if parsed.version_policy.latest.num_versions == count:
        return
    parsed.version_policy.latest.num_versions = count
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(config.text(parsed), encoding="utf-8")
    os.replace(partial, path)


def _served(path: Path) -> Any:
    """What clients and the server depend on in a configuration."""
    from google.protobuf import text_format

    parsed = text_format.Parse(path.read_text(encoding="utf-8"), config.protobuf().ModelConfig())
    for field in ("model_warmup", "dynamic_batching", "instance_group", "version_policy"):
        parsed.ClearField(field)
    return parsed


def _account(report: Report, run_directory: Path, folder: Path) -> Manifest:
    """Reports of the newest version, and the manifest of all files."""
    for name in (*building.REPORTS, building.RECIPE):
        if (run_directory / name).is_file():
            shutil.copyfile(run_directory / name, folder / name)
    roles = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != manifests.NAME:
            roles[name] = (
                "report" if name in building.REPORTS else "recipe" if name == building.RECIPE else "serving"
            )
    files = tuple(building.entry(folder, name, role) for name, role in sorted(roles.items()))
    manifest = manifests.describe(report, files)
    partial = folder / f".{manifests.NAME}.partial"
    partial.write_text(manifest.text(), encoding="utf-8")
    os.replace(partial, folder / manifests.NAME)
    return manifest
