"""ONNX Runtime: optimises the graph once, checks that it still computes the same, and keeps the result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from optimize.engines.base import Artifact, BuildRequest, EngineOptions, Progress
from optimize.engines.onnxruntime_providers import COMPILING, PROVIDERS, ProviderName, missing, provider_list
from optimize.errors import BackendMissing, StageFailed, UsageError

if TYPE_CHECKING:
    # onnx, NumPy and onnxruntime are slow to import; reading a recipe's options needs none of them
    from optimize.engines.onnxruntime_faults import Verified
    from optimize.engines.onnxruntime_session import OnnxRuntimeSession, Settings


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

    def native_code(self) -> tuple[str, ...]:
        """Every option of the provider: some of them load libraries, and each provider has its own."""
        return tuple(f"provider_options: {option}" for option in self.provider_options)


class OnnxRuntimeEngine:
    """Satisfies `Engine`. Cheap until `build` or `open`."""

    name = "onnxruntime"

    def __init__(self, options: OnnxRuntimeOptions | None = None) -> None:
        self.options = options or OnnxRuntimeOptions()

    def check(self) -> str | None:
        """Why the provider cannot run here, with what to install, or None."""
        return missing(self.options.provider)

    def check_run(self) -> str | None:
        """The same: what is needed to build is what runs."""
        return self.check()

    def build(self, request: BuildRequest, progress: Progress) -> Artifact:
        """Optimise the graph, verify it, and save it with its weights beside it.

        Raises:
            StageFailed: When the graph does not run, no optimisation level is right, or nodes fell back.
            BackendMissing: When the provider is missing.
        """
        from optimize.engines.onnxruntime_artifact import ENGINE_FILE, write_manifest
        from optimize.engines.onnxruntime_faults import Verified

        self._require()
        if not request.model.is_file():
            raise UsageError(f"{request.model}: no such file.")
        progress("onnxruntime: verify", 0, 2)
        verified = self._verify(request) if self.options.verify else Verified(self._settings())
        notes = list(verified.notes)
        progress("onnxruntime: optimise", 1, 2)
        path = request.directory / ENGINE_FILE
        with self._save(request.model, path, verified.settings) as session:
            fallen = self._fallen_back(session, path)
            placement = dict(session.placement())
            ops = Counter(op_type for _, op_type, _ in session.nodes())
        if fallen and self.options.fail_on_fallback:
            raise StageFailed(
                f"onnxruntime: {len(fallen)} nodes fell back from {PROVIDERS[self.options.provider]} to the "
                f"CPU: {_list(fallen)}.",
                hint="Set engine.fail_on_fallback: false to accept it, or leave these layers in a precision "
                "that the provider has.",
            )
        if fallen:
            notes.append(f"onnxruntime: {len(fallen)} nodes run on the CPU instead: {_list(fallen)}.")
        manifest = write_manifest(
            path,
            provider=self.options.provider,
            level=verified.settings.level,
            disabled_optimizers=verified.settings.disabled_optimizers,
            is_optimized=self.options.provider not in COMPILING,
        )
        if manifest.vectors is not None:
            notes.append(
                "onnxruntime: weights are laid out for this processor's vectors; build again on another, or with "
                "graph_optimization: extended."
            )
        progress("onnxruntime: optimise", 2, 2)
        return Artifact(
            path=path,
            kind="onnxruntime",
            sha256=_sha256(path),
            size_bytes=sum(file.stat().st_size for file in request.directory.iterdir()),
            made_by=f"onnxruntime {manifest.version}",
            details={
                **manifest.model_dump(mode="json", exclude={"version"}),
                "threads": self.options.threads,
                "relative_l2_to_unoptimised": verified.relative_l2,
                "placement": placement,
                "ops": dict(ops.most_common()),
                "fallback": list(fallen),
                "notes": notes,
            },
        )

    def open(self, artifact: Path) -> OnnxRuntimeSession:
        """Open what `build` made, or any other ONNX file, which is then optimised as the options say.

        Raises:
            UsageError: When there is no such file.
            StageFailed: When a file is missing, damaged, or made by another version or for another provider.
            BackendMissing: When the provider is missing.
        """
        from optimize.engines.onnxruntime_artifact import read_manifest
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession, as_written

        self._require()
        manifest = read_manifest(artifact, self.options.provider)
        if manifest is None:
            return OnnxRuntimeSession(artifact, self._settings())
        # a saved graph is optimised already; one that is compiled when opened starts from the original again
        settings = self._settings(
            level="disable" if manifest.is_optimized else manifest.level,
            disabled_optimizers=manifest.disabled_optimizers,
        )
        if manifest.is_optimized and not manifest.is_widened:
            settings = as_written(settings, artifact)
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

    def _verify(self, request: BuildRequest) -> Verified:
        """The strongest settings that are right; unverified, with a note, where random numbers do not run."""
        import numpy as np

        from optimize.engines import onnxruntime_faults as faults
        from optimize.engines.onnxruntime_artifact import rounds
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession
        from optimize.engines.sample import random_feeds

        wanted = self._settings()
        try:
            truth = self._truth(request.model)
            with OnnxRuntimeSession(request.model, truth) as session:
                rng = np.random.default_rng(0)
                feeds = request.sample or random_feeds(session.inputs, request.ranges, rng)
                reference = session.run(feeds)
        except StageFailed as error:
            if request.sample is not None:
                raise
            return faults.Verified(
                wanted, notes=(f"onnxruntime: not verified on random numbers ({error.message}).",)
            )
        return faults.choose(request.model, wanted, reference, feeds, is_quantized=rounds(request.model))

    def _truth(self, model: Path) -> Settings:
        """How to run the graph as written: on the CPU where it has the kernels, else on the provider itself."""
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession, as_written

        truth = as_written(self._settings(), model)
        if self.options.provider == "cpu":
            return truth
        on_cpu = dataclasses.replace(truth, providers=provider_list("cpu", {}))
        try:
            with OnnxRuntimeSession(model, on_cpu):
                return on_cpu
        except StageFailed:
            return truth

    def _save(self, model: Path, path: Path, settings: Settings) -> OnnxRuntimeSession:
        """Open with these settings and leave a model at `path`: the optimised one where it can be saved."""
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession

        if self.options.provider in COMPILING:
            # compiled nodes cannot be serialised as ONNX; their own context format can
            return self._save_compiled(model, path, settings)
        # nothing runs here, so weights need no packed copies
        config = {**settings.config, "session.disable_prepacking": "1"}
        with OnnxRuntimeSession(model, dataclasses.replace(settings, save_to=path, config=config)):
            pass
        return OnnxRuntimeSession(path, dataclasses.replace(settings, level="disable"))

    def _save_compiled(self, model: Path, path: Path, settings: Settings) -> OnnxRuntimeSession:
        from optimize.engines.onnxruntime_artifact import copy_model
        from optimize.engines.onnxruntime_session import OnnxRuntimeSession

        if self.options.ep_context:
            config = {
                **settings.config,
                "ep.context_enable": "1",
                "ep.context_embed_mode": "0",
                "ep.context_file_path": str(path),
            }
            return OnnxRuntimeSession(model, dataclasses.replace(settings, config=config))
        copy_model(model, path)
        return OnnxRuntimeSession(path, settings)

    def _fallen_back(self, session: OnnxRuntimeSession, path: Path) -> tuple[str, ...]:
        """Nodes that the CPU got although the provider should run them, with their operators."""
        from optimize.engines.onnxruntime_artifact import integer_nodes

        if self.options.provider == "cpu":
            return ()
        integers = integer_nodes(path)
        return tuple(
            f"{name} ({op_type})"
            for provider, op_type, name in session.nodes()
            if provider == PROVIDERS["cpu"] and name not in integers
        )


def _list(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
