"""A finished run as one thing to hand over: a folder or an archive with everything in it accounted for."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from optimize import onnx_files
from optimize.bundle import archive, reproduce
from optimize.bundle import manifest as manifests
from optimize.bundle.manifest import Entry, Manifest
from optimize.engines.base import Progress
from optimize.errors import UsageError
from optimize.onnx_files import sha256_of
from optimize.report import reading
from optimize.report.model import Report

REPORTS = ("report.json", "report.html", "report.md")
RECIPE = "recipe.resolved.yaml"

_LIBRARY = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"
"""As packages are named and versioned: both stand in commands that a bundle's user runs."""


def quiet(what: str, done: int, total: int) -> None:
    """Progress nobody watches."""


def bundle(
    run_directory: Path, destination: Path, *, allow_failed: bool = False, progress: Progress = quiet
) -> Manifest:
    """Bundle a run: engine, ONNX, manifest, report, resolved recipe, and scripts that make it again.

    Args:
        run_directory: The output folder of a finished `optimize run`.
        destination: A new folder, or a new file ending in .tar, .tar.gz or .tgz.
        allow_failed: Bundle a run whose gates do not hold, too.
        progress: Told what is being done.

    Returns:
        The manifest, as written.

    Raises:
        UsageError: When the run is not finished, its verdict is not PASS, its files are not those it measured,
            or the destination exists.
    """
    progress("checking the run's files", 0, 3)
    report = finished(run_directory, allow_failed=allow_failed)
    if destination.exists():
        raise UsageError(f"{destination} exists; name a new folder or file.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    _remove(partial)
    packed = destination.with_name(f".{destination.name}.packed.partial{_suffix(destination)}")
    _remove(packed)
    try:
        partial.mkdir()
        progress("gathering files", 1, 3)
        manifest = _gather(report, run_directory, partial)
        if archive.is_archive(destination):
            progress("packing", 2, 3)
            archive.write(partial, manifest, packed, name=_stem(destination))
            os.replace(packed, destination)
        else:
            partial.rename(destination)
    finally:
        _remove(partial)
        _remove(packed)
    return manifest


def finished(run_directory: Path, *, allow_failed: bool) -> Report:
    """The report of a run that may be handed over, its files checked against it.

    Raises:
        UsageError: When it may not.
    """
    report = reading.read(run_directory)
    if report.verdict == "ERROR":
        raise UsageError(
            f"{run_directory}: the run did not finish.", hint="Run it again; it goes on where it stopped."
        )
    if report.verdict == "PARTIAL":
        raise UsageError(
            f"{run_directory}: the run was stopped after '{report.stopped_after}'; nothing later was judged.",
            hint="Run it again without --until; it goes on where it stopped.",
        )
    if report.verdict == "FAIL" and not allow_failed:
        raise UsageError(
            f"{run_directory}: the verdict is FAIL; a failed run is not bundled.",
            hint="Mend it, or pass --allow-failed.",
        )
    if not report.artifacts:
        raise UsageError(f"{run_directory}: the report names no artifact.")
    for library, version in report.environment.libraries.items():
        if not re.fullmatch(_LIBRARY, library) or not re.fullmatch(_VERSION, version):
            raise UsageError(f"{run_directory}: the report names a library '{library} {version}', which none is.")
    for artifact in report.artifacts:
        path = run_directory / artifact.file
        if not manifests.is_safe(artifact.file) or not path.is_file():
            raise UsageError(f"{path}: the report names it, but it is not there.", hint="Run the recipe again.")
        refuse_link(path, run_directory)
        measured = onnx_files.digest(path, sha256_of)[0] if artifact.kind == "onnx" else sha256_of(path)
        if measured != artifact.sha256:
            raise UsageError(
                f"{path}: not the file that was measured (sha256 {measured[:12]}…, report says "
                f"{artifact.sha256[:12]}…).",
                hint="Run the recipe again.",
            )
    return report


def refuse_link(path: Path, run_directory: Path) -> None:
    """Refuse what only a link brings into a run's folder: a bundle would carry a file that is not the run's.

    Raises:
        UsageError: When it is one, or reached through one.
    """
    if path.is_symlink() or not path.resolve().is_relative_to(run_directory.resolve()):
        raise UsageError(f"{path}: is a link, or reached through one; only the run's own files are bundled.")


def engine_files(run_directory: Path, file: str) -> list[Path]:
    """The engine's main file and, where it has a folder of its own, all that lies in it.

    Raises:
        UsageError: When one is a link.
    """
    main = run_directory / file
    # An engine's folder is its own: caches, data files and options beside the main file belong to it.
    inside = sorted(main.parent.rglob("*")) if main.parent != run_directory else [main]
    for path in inside:
        refuse_link(path, run_directory)
    return [path for path in inside if path.is_file()]


def _gather(report: Report, run_directory: Path, into: Path) -> Manifest:
    roles: dict[str, str] = {}
    models: dict[str, str] = {}
    for artifact in report.artifacts:
        main = run_directory / artifact.file
        if artifact.kind == "onnx":
            files = onnx_files.files_of(main)
            models |= {path.relative_to(run_directory).as_posix(): sha256_of(path) for path in files}
        else:
            files = engine_files(run_directory, artifact.file)
        for path in files:
            roles[path.relative_to(run_directory).as_posix()] = "model" if artifact.kind == "onnx" else "engine"
    for name in (*REPORTS, RECIPE):
        if (run_directory / name).is_file():
            roles[name] = "recipe" if name == RECIPE else "report"
    for name in roles:
        refuse_link(run_directory / name, run_directory)
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_directory / name, into / name)
    for name, text in reproduce.scripts(report, models).items():
        path = into / "reproduce" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
        roles[f"reproduce/{name}"] = "reproduce"
    manifest = manifests.describe(report, tuple(entry(into, name, roles[name]) for name in sorted(roles)))
    (into / manifests.NAME).write_text(manifest.text(), encoding="utf-8")
    return manifest


def entry(folder: Path, name: str, role: str) -> Entry:
    """A file of a bundle, described."""
    path = folder / name
    return Entry(
        path=name,
        role=role,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        is_executable=path.suffix == ".sh",
    )


def _suffix(path: Path) -> str:
    return next((suffix for suffix in (".tar.gz", ".tgz", ".tar") if path.name.endswith(suffix)), "")


def _stem(path: Path) -> str:
    return path.name.removesuffix(_suffix(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
