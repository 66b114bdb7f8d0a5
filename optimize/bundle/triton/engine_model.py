"""The model that is the engine itself: what each of Triton's backends wants to find in its folder."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from pathlib import Path

from optimize.bundle import building
from optimize.bundle.triton import config
from optimize.bundle.triton.options import ServingOptions
from optimize.bundle.triton.tensors import Interface, example
from optimize.engines.onnxruntime_artifact import MANIFEST_FILE
from optimize.engines.onnxruntime_artifact import Manifest as Built
from optimize.engines.onnxruntime_providers import provider_list
from optimize.errors import UsageError
from optimize.report.model import Report


def write(
    report: Report, run_directory: Path, folder: Path, name: str, io: Interface, options: ServingOptions
) -> None:
    """Write the engine's model into a new folder: configuration, warm-up data, one version.

    Raises:
        UsageError: When the backend cannot serve this kind of engine.
    """
    artifact = next(item for item in report.artifacts if item.label == "engine")
    engine_folder = (run_directory / artifact.file).parent
    engine_files = building.engine_files(run_directory, artifact.file)
    backend = _backend(artifact.kind, options)
    settings = report.recipe.get("engine", {})
    provider = settings.get("provider", "cpu")
    on_gpu = backend == "tensorrt" or provider != "cpu"
    version = folder / str(options.version)
    version.mkdir(parents=True)
    file = {"tensorrt": "model.plan", "onnxruntime": Path(artifact.file).name, "python": ""}[backend]
    described = config.model(name, backend, io, options, on_gpu=on_gpu, file=file)
    if backend == "tensorrt":
        shutil.copyfile(run_directory / artifact.file, version / file)
    elif backend == "onnxruntime":
        built = _manifest(engine_folder)
        for file_name in built.files:
            if engine_folder / file_name not in engine_files:
                raise UsageError(f"{engine_folder / file_name}: a file of the engine is not there.")
            shutil.copyfile(engine_folder / file_name, version / file_name)
        config.optimized_already(described, is_optimized=built.is_optimized, threads=settings.get("threads"))
    else:
        for path in engine_files:
            copy = version / "engine" / path.relative_to(engine_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        built = _manifest(engine_folder)
        providers = provider_list(built.provider, settings.get("provider_options") or {})
        serving = {
            "file": Path(artifact.file).name,
            "version": built.version,
            "is_optimized": built.is_optimized,
            "disabled_optimizers": built.disabled_optimizers,
            "threads": settings.get("threads"),
            "session_options": settings.get("session_options") or {},
            "providers": [[provider, dict(values)] for provider, values in providers],
        }
        (version / "serving.json").write_text(json.dumps(serving, indent=2) + "\n", encoding="utf-8")
        python_source(version, "onnxruntime_model.py")
    (folder / "config.pbtxt").write_text(config.text(described), encoding="utf-8")
    (folder / "warmup").mkdir()
    for tensor in io.inputs:
        (folder / "warmup" / f"{config.WARMUP}-{tensor.name}").write_bytes(example(tensor).tobytes())


def _backend(kind: str, options: ServingOptions) -> str:
    natural = "onnxruntime" if kind == "onnxruntime" else "tensorrt"
    backend = natural if options.backend == "auto" else options.backend
    if (backend == "tensorrt") != (natural == "tensorrt"):
        raise UsageError(f"backend '{backend}' cannot serve a {kind} engine.", hint=f"Use {natural}.")
    return backend


def _manifest(engine_folder: Path) -> Built:
    file = engine_folder / MANIFEST_FILE
    try:
        return Built.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise UsageError(f"{file}: damaged, or of another version.", hint="Run the recipe again.") from error


def python_source(version: Path, source: str) -> None:
    """Put a Python model into a version's folder."""
    code = (importlib.resources.files("optimize.bundle.triton") / "models" / source).read_text(encoding="utf-8")
    (version / "model.py").write_text(code, encoding="utf-8")
