"""Writes the repository: `models/<name>/config.pbtxt`, versions, warm-up data, ensemble steps, a container file."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import shutil
from pathlib import Path
from typing import Any

from optimize.bundle import building, verifying
from optimize.bundle import manifest as manifests
from optimize.bundle.manifest import Manifest
from optimize.bundle.triton import batching, config, container
from optimize.bundle.triton.options import ServingOptions, model_name
from optimize.bundle.triton.tensors import Interface, Tensor, example, interface
from optimize.engines import registry
from optimize.errors import UsageError
from optimize.report.model import Report

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def write(
    run_directory: Path,
    destination: Path,
    options: ServingOptions,
    *,
    measure: bool = False,
    allow_failed: bool = False,
) -> Manifest:
    """Write a repository, or add a version to one that this wrote before.

    Args:
        run_directory: The output folder of a finished `optimize run`.
        destination: A new folder; or an existing repository of the same model without this version.
        measure: Time the engine at several batch sizes here, and prefer those that pay.

    Raises:
        UsageError: When the run may not be handed over, the backend cannot serve it, or the version exists.
        BackendMissing: When tritonclient is missing, or the engine cannot run here although it is to be measured.
    """
    report = building.finished(run_directory, allow_failed=allow_failed)
    io = interface(report, options.max_batch)
    curve: dict[int, float] = {}
    if measure and io.max_batch:
        curve = _measure(report, run_directory, io)
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
        _model(report, run_directory, partial / "models" / name, name, io, options)
        if options.tokenizer is not None:
            _ensemble(report, partial / "models", name, io, options)
        (partial / "Containerfile").write_text(container.render(report, name, options), encoding="utf-8")
        if curve:
            text = json.dumps({str(size): round(latency, 4) for size, latency in curve.items()}, indent=2)
            (partial / "batch-latency-ms.json").write_text(text + "\n", encoding="utf-8")
        manifest = _account(report, run_directory, partial)
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _measure(report: Report, run_directory: Path, io: Interface) -> dict[int, float]:
    engine = registry.create(report.recipe.get("engine", {}))
    with engine.open(run_directory / _engine_file(report)) as session:
        return batching.curve(session, io)


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
        _model(report, run_directory, partial, name, io, options)
        if _served(partial / "config.pbtxt") != _served(folder / "config.pbtxt"):
            raise UsageError(
                f"{folder}: version {options.version} has other inputs, outputs, batch or backend than those "
                "there.",
                hint="Serve it under another --name.",
            )
        # The whole version appears at once: a server that polls never sees a part of it.
        os.rename(partial / str(options.version), folder / str(options.version))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _account(report, run_directory, destination)


def _served(path: Path) -> Any:
    """What clients and the server depend on in a configuration."""
    from google.protobuf import text_format

    parsed = text_format.Parse(path.read_text(encoding="utf-8"), config.protobuf().ModelConfig())
    for field in ("model_warmup", "dynamic_batching", "instance_group", "version_policy"):
        parsed.ClearField(field)
    return parsed


def _model(
    report: Report, run_directory: Path, folder: Path, name: str, io: Interface, options: ServingOptions
) -> None:
    """The engine's own model: configuration, warm-up data, one version."""
    artifact = next(item for item in report.artifacts if item.label == "engine")
    engine_folder = (run_directory / artifact.file).parent
    backend = _backend(artifact.kind, options)
    settings = report.recipe.get("engine", {})
    provider = settings.get("provider", "cpu")
    on_gpu = backend == "tensorrt" or provider != "cpu"
    version = folder / str(options.version)
    version.mkdir(parents=True)
    file = {"tensorrt": "model.plan", "onnxruntime": Path(artifact.file).name, "python": ""}[backend]
    described = config.model(name, backend, io, options, on_gpu=on_gpu, file=file)
    facts = _engine_facts(engine_folder)
    if backend == "tensorrt":
        shutil.copyfile(run_directory / artifact.file, version / file)
    elif backend == "onnxruntime":
        for path in engine_folder.iterdir():
            if path.is_file() and path.name != "engine.json":
                shutil.copyfile(path, version / path.name)
        config.optimized_already(
            described, is_optimized=facts.get("is_optimized", False), threads=settings.get("threads")
        )
    else:
        shutil.copytree(engine_folder, version / "engine")
        serving = {
            "file": Path(artifact.file).name,
            "is_optimized": facts.get("is_optimized", False),
            "disabled_optimizers": facts.get("disabled_optimizers", []),
            "threads": settings.get("threads"),
            "session_options": settings.get("session_options") or {},
            "providers": [[PROVIDERS[provider], settings.get("provider_options") or {}]],
        }
        (version / "serving.json").write_text(json.dumps(serving, indent=2) + "\n", encoding="utf-8")
        _python(version, "onnxruntime_model.py")
    (folder / "config.pbtxt").write_text(config.text(described), encoding="utf-8")
    (folder / "warmup").mkdir()
    for tensor in io.inputs:
        (folder / "warmup" / f"{config.WARMUP}-{tensor.name}").write_bytes(example(tensor).tobytes())


def _engine_facts(folder: Path) -> dict[str, Any]:
    path = folder / "engine.json"
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return facts


def _backend(kind: str, options: ServingOptions) -> str:
    natural = "onnxruntime" if kind == "onnxruntime" else "tensorrt"
    backend = natural if options.backend == "auto" else options.backend
    if (backend == "tensorrt") != (natural == "tensorrt"):
        raise UsageError(f"backend '{backend}' cannot serve a {kind} engine.", hint=f"Use {natural}.")
    return backend


def _python(version: Path, source: str) -> None:
    code = (importlib.resources.files("optimize.bundle.triton") / "models" / source).read_text(encoding="utf-8")
    (version / "model.py").write_text(code, encoding="utf-8")


def _ensemble(report: Report, models: Path, name: str, io: Interface, options: ServingOptions) -> None:
    """Text in, vector out: tokenizer → engine (→ pooling)."""
    assert options.tokenizer is not None
    known = ("input_ids", "attention_mask", "token_type_ids")
    strange = [tensor.name for tensor in io.inputs if tensor.name not in known]
    if strange or not io.max_batch:
        raise UsageError(f"a tokenizer cannot feed {', '.join(strange) or 'a model without a batch axis'}.")
    if not options.tokenizer.is_file():
        raise UsageError(f"{options.tokenizer}: no such file; name a tokenizer.json.")
    longest = _longest(report, io)
    text = Tensor("text", "string", ("batch", 1), (1,), (1,))
    parameters = {"maximum_tokens": str(longest), "pad_to": str(options.pad_to)}
    gives = list(io.inputs)
    if options.pooling == "mean" and "attention_mask" not in [tensor.name for tensor in gives]:
        mask = dataclasses.replace(io.inputs[0], name="attention_mask")
        gives.append(mask)
    tokenizer = f"{name}_tokenizer"
    _step(
        models / tokenizer,
        config.step(tokenizer, (text,), tuple(gives), io.max_batch, options, parameters),
        "tokenizer_model.py",
    )
    shutil.copyfile(options.tokenizer, models / tokenizer / "1" / "tokenizer.json")
    outputs = io.outputs
    names = {tensor.name: tensor.name for tensor in io.inputs}
    steps = [
        (tokenizer, {"text": "text"}, {tensor.name: tensor.name for tensor in gives}),
        (name, names, {tensor.name: f"{name}.{tensor.name}" for tensor in io.outputs}),
    ]
    if options.pooling == "mean":
        vectors = io.outputs[0]
        if len(vectors.dims) != 2 or vectors.data_type != "TYPE_FP32":
            raise UsageError(
                f"pooling: '{vectors.name}' is {vectors.dtype} {list(vectors.shape)}; expected float32 "
                "(batch, tokens, width).",
                hint="A model that pools inside needs no pooling step.",
            )
        mask = next(tensor for tensor in gives if tensor.name == "attention_mask")
        pooled = Tensor("pooled", "float32", ("batch", vectors.shape[2]), vectors.dims[1:], vectors.typical[1:])
        takes = (dataclasses.replace(vectors, name="vectors"), dataclasses.replace(mask, name="mask"))
        _step(
            models / f"{name}_pooling",
            config.step(f"{name}_pooling", takes, (pooled,), io.max_batch, options, {}),
            "pooling_model.py",
        )
        steps.append(
            (
                f"{name}_pooling",
                {"vectors": f"{name}.{vectors.name}", "mask": "attention_mask"},
                {"pooled": "pooled"},
            )
        )
        outputs = (pooled,)
    else:
        steps[1] = (name, names, {tensor.name: tensor.name for tensor in io.outputs})
    whole = f"{name}_text"
    described = config.ensemble(whole, (text,), outputs, io.max_batch, options, steps)
    (models / whole / "1").mkdir(parents=True)
    # An ensemble's version holds nothing, but the folder must be there; archives keep no empty folders.
    (models / whole / "1" / "README").write_text("An ensemble has no files of its own.\n", encoding="utf-8")
    (models / whole / "config.pbtxt").write_text(config.text(described), encoding="utf-8")


def _longest(report: Report, io: Interface) -> int:
    axis = io.inputs[0].shape[1]
    if isinstance(axis, int):
        return axis
    known = report.source.get("ranges", {}).get(str(axis), {}).get("maximum")
    if known is None:
        raise UsageError(f"nobody says how long axis '{axis}' may be.", hint="Give it a range in the recipe.")
    return int(known)


def _step(folder: Path, described: Any, source: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config.text(described), encoding="utf-8")
    _python(folder / "1", source)


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
