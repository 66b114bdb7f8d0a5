"""ONNX Runtime: optimises the graph once, checks that it still computes the same, and keeps the result."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import pydantic

from optimize.engines.base import Artifact, BuildRequest, EngineOptions, Feeds, Progress
from optimize.engines.onnxruntime_providers import PROVIDERS, ProviderName, missing, provider_list
from optimize.engines.sample import random_feeds
from optimize.errors import BackendMissing, StageFailed, UsageError

if TYPE_CHECKING:
    from optimize.engines.onnxruntime_session import OnnxRuntimeSession, Settings

ENGINE_FILE = "engine.onnx"
MANIFEST_FILE = "engine.json"

_ROUNDING_OPS = frozenset(
    {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
    }
)


class OnnxRuntimeOptions(EngineOptions):
    """How ONNX Runtime runs the optimised model."""

    kind: Literal["onnxruntime"] = "onnxruntime"
    provider: ProviderName = pydantic.Field(
        default="cpu", description="Execution provider; what it cannot run goes to the CPU."
    )
    threads: int | None = pydantic.Field(
        default=None, ge=1, description="Threads within an operator; one per usable core if absent."
    )
    graph_optimization: Literal["disable", "basic", "extended", "all"] = pydantic.Field(
        default="all", description="ONNX Runtime's own graph optimisation; weakened where it is wrong."
    )
    disabled_optimizers: tuple[str, ...] = pydantic.Field(
        default=(), description="Graph optimisers to leave out, by ONNX Runtime's names."
    )
    session_options: dict[str, str] = pydantic.Field(
        default_factory=dict,
        description='Session configuration entries: {"session.set_denormal_as_zero": "1"}.',
    )
    provider_options: dict[str, str] = pydantic.Field(
        default_factory=dict, description='Options of the provider: {"use_tf32": "0"}.'
    )
    fail_on_fallback: bool = pydantic.Field(
        default=True,
        description="Fail when the CPU gets nodes that the provider should run (shape arithmetic excepted).",
    )
    verify: bool = pydantic.Field(
        default=True, description="Compare the optimised graph's results with the unoptimised one's."
    )
    ep_context: bool = pydantic.Field(
        default=False, description="Keep the engine that TensorRT's providers compile inside the artifact."
    )


class OnnxRuntimeEngine:
    """Satisfies `Engine`. Cheap until `build` or `open`."""

    name = "onnxruntime"

    def __init__(self, options: OnnxRuntimeOptions | None = None) -> None:
        self.options = options or OnnxRuntimeOptions()

    def check(self) -> str | None:
        """Why the provider cannot run here, with what to install, or None."""
        return missing(self.options.provider)

    def build(self, request: BuildRequest, progress: Progress) -> Artifact:
        """Optimise the graph, verify it, and save it with its weights beside it.

        Raises:
            StageFailed: When the graph does not run, no optimisation level is right, or nodes fell back.
            BackendMissing: When the provider is missing.
        """
        from optimize.engines import onnxruntime_faults as faults

        self._require()
        if not request.model.is_file():
            raise UsageError(f"{request.model}: no such file.")
        progress("onnxruntime: verify", 0, 2)
        notes: list[str] = []
        wanted, distance = self._settings(), None
        if self.options.verify:
            truth = self._settings(level="disable", disabled_optimizers=())
            if self.options.provider != "cpu":
                truth = dataclasses.replace(truth, providers=provider_list("cpu", {}))
            feeds = dict(request.sample) if request.sample is not None else self._random(request, truth)
            choice = faults.choose(request.model, wanted, truth, feeds, is_quantized=_rounds(request.model))
            wanted, distance = choice.settings, choice.relative_l2
            notes.extend(choice.notes)
        progress("onnxruntime: optimise", 1, 2)
        path = request.directory / ENGINE_FILE
        with self._save(request.model, path, wanted) as session:
            fallen = self._fallen_back(session, path)
            placement = dict(session.placement())
            session_ops = Counter(op_type for _, op_type, _ in session.nodes())
        if fallen and self.options.fail_on_fallback:
            raise StageFailed(
                f"onnxruntime: {len(fallen)} nodes fell back from {PROVIDERS[self.options.provider]} to the "
                f"CPU: {_list(fallen)}.",
                hint="Set engine.fail_on_fallback: false to accept it, or leave these layers in a precision "
                "that the provider has.",
            )
        if fallen:
            notes.append(f"onnxruntime: {len(fallen)} nodes run on the CPU instead: {_list(fallen)}.")
        return self._finish(path, wanted, distance, placement, session_ops, fallen, notes, progress)

    def open(self, artifact: Path) -> OnnxRuntimeSession:
        """Open what `build` made, or any other ONNX file, which is then optimised as the options say.

        Raises:
            UsageError: When there is no such file.
            StageFailed: When a file is missing, damaged, or made by another version or for another provider.
            BackendMissing: When the provider is missing.
        """
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession

        self._require()
        manifest = _manifest(artifact)
        if manifest is None:
            return OnnxRuntimeSession(artifact, self._settings())
        version = importlib.metadata.version(_distribution())
        if manifest["version"] != version:
            raise StageFailed(
                f"{artifact.name}: made by onnxruntime {manifest['version']}, this is {version}.",
                hint="Build it again: optimised graphs hold operators private to a version.",
            )
        if manifest["provider"] != self.options.provider:
            raise StageFailed(
                f"{artifact.name}: built for provider '{manifest['provider']}', "
                f"asked to open it with '{self.options.provider}'."
            )
        for file, size in manifest["files"].items():
            path = artifact.parent / file
            if not path.is_file() or path.stat().st_size != size:
                raise StageFailed(f"{artifact.name}: its file '{file}' is missing or damaged. Build it again.")
        # the saved graph is optimised already; a rebuilt one starts from the original again
        level = "disable" if manifest["is_optimized"] else manifest["level"]
        settings = self._settings(level=level, disabled_optimizers=tuple(manifest["disabled_optimizers"]))
        return OnnxRuntimeSession(artifact, settings)

    def _require(self) -> None:
        problem = self.check()
        if problem:
            raise BackendMissing(f"engine onnxruntime, provider {self.options.provider}: {problem}")

    def _settings(self, **changes: Any) -> Settings:
        from optimize.engines.onnxruntime_session import Settings

        settings = Settings(
            level=self.options.graph_optimization,
            threads=self.options.threads,
            providers=provider_list(self.options.provider, self.options.provider_options),
            config=self.options.session_options,
            disabled_optimizers=self.options.disabled_optimizers,
        )
        return dataclasses.replace(settings, **changes)

    def _random(self, request: BuildRequest, truth: Settings) -> Feeds:
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession

        with OnnxRuntimeSession(request.model, truth) as session:
            return random_feeds(session.inputs, request.ranges, np.random.default_rng(0))

    def _save(self, model: Path, path: Path, settings: Settings) -> OnnxRuntimeSession:
        """Open with these settings and leave a model at `path`: the optimised one where it can be saved."""
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession

        if self.options.provider in ("tensorrt", "tensorrt-rtx"):
            # compiled nodes cannot be serialised as ONNX; their own context format can
            return self._save_compiled(model, path, settings)
        # nothing runs here, so weights need no packed copies
        config = {**settings.config, "session.disable_prepacking": "1"}
        with OnnxRuntimeSession(model, dataclasses.replace(settings, save_to=path, config=config)):
            pass
        return OnnxRuntimeSession(path, dataclasses.replace(settings, level="disable"))

    def _save_compiled(self, model: Path, path: Path, settings: Settings) -> OnnxRuntimeSession:
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession

        if self.options.ep_context:
            config = {
                **settings.config,
                "ep.context_enable": "1",
                "ep.context_embed_mode": "0",
                "ep.context_file_path": str(path),
            }
            return OnnxRuntimeSession(model, dataclasses.replace(settings, config=config))
        _copy(model, path)
        return OnnxRuntimeSession(path, settings)

    def _fallen_back(self, session: OnnxRuntimeSession, path: Path) -> tuple[str, ...]:
        """Nodes that the CPU got although the provider should run them, with their operators."""
        if self.options.provider == "cpu":
            return ()
        integers = _integer_nodes(path)
        return tuple(
            f"{name} ({op_type})"
            for provider, op_type, name in session.nodes()
            if provider == PROVIDERS["cpu"] and name not in integers
        )

    def _finish(
        self,
        path: Path,
        settings: Settings,
        distance: float | None,
        placement: dict[str, int],
        ops: Counter[str],
        fallen: tuple[str, ...],
        notes: list[str],
        progress: Progress,
    ) -> Artifact:
        version = importlib.metadata.version(_distribution())
        files = {
            file.name: file.stat().st_size
            for file in sorted(path.parent.iterdir())
            if file.is_file() and file.name != MANIFEST_FILE
        }
        manifest = {
            "version": version,
            "provider": self.options.provider,
            "level": settings.level,
            "disabled_optimizers": list(settings.disabled_optimizers),
            "is_optimized": self.options.provider in ("cpu", "cuda"),
            "files": files,
        }
        manifest_path = path.parent / MANIFEST_FILE
        manifest_path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        progress("onnxruntime: optimise", 2, 2)
        return Artifact(
            path=path,
            kind="onnxruntime",
            sha256=_sha256(path),
            size_bytes=sum(files.values()) + manifest_path.stat().st_size,
            made_by=f"onnxruntime {version}",
            details={
                "provider": self.options.provider,
                "threads": self.options.threads,
                "graph_optimization": settings.level,
                "disabled_optimizers": list(settings.disabled_optimizers),
                "relative_l2_to_unoptimised": distance,
                "placement": placement,
                "ops": dict(ops.most_common()),
                "fallback": list(fallen),
                "files": files,
                "notes": notes,
            },
        )


def _copy(model: Path, path: Path) -> None:
    """Copy an ONNX file and the data files it names, without reading them into memory."""
    shutil.copyfile(model, path)
    for tensor in onnx.load(model, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            source, copy = model.parent / entry.value, path.parent / entry.value
            if not copy.resolve().is_relative_to(path.parent.resolve()):
                raise UsageError(f"{model.name}: its data file '{entry.value}' lies outside its folder.")
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


def _rounds(model: Path) -> bool:
    """Whether the graph rounds to few bits somewhere."""
    graph = onnx.load(model, load_external_data=False)
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    return any(node.op_type in _ROUNDING_OPS for node in nodes)


def _integer_nodes(path: Path) -> frozenset[str]:
    """Nodes whose outputs are all integers or booleans: shape arithmetic, which belongs on the CPU."""
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    return frozenset(
        node.name for node in graph.node if all(kinds.get(name) in whole for name in node.output if name)
    )


def _manifest(artifact: Path) -> dict[str, Any] | None:
    """What `build` wrote beside its artifact; None for a file that it did not make."""
    path = artifact.parent / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_ours = artifact.name in manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageFailed(f"{artifact.name}: '{MANIFEST_FILE}' beside it is damaged. Build it again.") from error
    return manifest if is_ours else None


def _distribution() -> str:
    """The distribution that brought onnxruntime: there are several, one per family of devices."""
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-trt-rtx"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return "onnxruntime"


def _list(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
