"""The TensorRT engine: ONNX to a plan, a plan to a session. Serves TensorRT and TensorRT for RTX alike."""

from __future__ import annotations

from pathlib import Path

from optimize.engines import (
    collector,
    tensorrt_build,
    tensorrt_device,
    tensorrt_library,
    tensorrt_plan,
    tensorrt_plugin_builtin,
    tensorrt_plugins,
)
from optimize.engines.base import Artifact, BuildRequest, Progress
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.engines.tensorrt_plugin_builtin import BUILTIN
from optimize.engines.tensorrt_session import TensorRTSession
from optimize.errors import BackendMissing

KIND = "tensorrt-plan"


class TensorRTEngine:
    """Builds plans with the TensorRT that is installed, and runs them on the first GPU."""

    name = "tensorrt"

    def __init__(self, options: TensorRTOptions | None = None) -> None:
        self.options = options or TensorRTOptions()

    def check(self) -> str | None:
        """Why no engine can be built here, or None. TensorRT for RTX builds without a GPU."""
        try:
            library = tensorrt_library.load()
            if not library.flavour.builds_without_device:
                tensorrt_device.require()
            tensorrt_plugins.require(self.options.plugins)
        except BackendMissing as error:
            return str(error)
        return None

    def check_run(self) -> str | None:
        """Why no plan can run here, or None."""
        try:
            tensorrt_library.load()
            tensorrt_device.require()
            tensorrt_plugins.require(self.options.plugins)
            if BUILTIN in self.options.plugins:
                tensorrt_plugin_builtin.require_runtime()
        except BackendMissing as error:
            return str(error)
        return None

    def build(self, request: BuildRequest, progress: Progress) -> Artifact:
        """Build `engine.plan` with its manifest into the request's folder.

        Raises:
            StageFailed: When TensorRT cannot read the model (naming the node) or build it.
            BackendMissing: When TensorRT, or a GPU it needs, is missing.
        """
        library = tensorrt_library.load()
        with collector.at_rest():
            built = tensorrt_build.build(library, self.options, request, progress)
        path, manifest = tensorrt_plan.write(
            request.directory,
            built.plan,
            {
                "flavour": library.flavour.module,
                "version": library.version,
                "model": request.model.name,
                "model_sha256": tensorrt_plan.digest(request.model),
                "device": built.device,
                "hardware_compatibility_level": self.options.hardware_compatibility_level,
                "compute_capabilities": tuple(
                    built.device.compute_capability if one == "current" and built.device else one
                    for one in self.options.compute_capabilities
                ),
                "version_compatible": self.options.version_compatible,
                "is_stripped": self.options.strip_plan,
                "plugins": tuple(Path(plugin).name for plugin in self.options.plugins),
                "inputs": built.inputs,
                "outputs": built.outputs,
                "profiles": tuple(dict(profile) for profile in built.profiles),
            },
        )
        return Artifact(
            path=path,
            kind=KIND,
            sha256=manifest.sha256,
            size_bytes=manifest.size_bytes + tensorrt_plan.manifest_path(path).stat().st_size,
            made_by=library.title,
            details={
                **built.layers.model_dump(mode="json"),
                "memory_bytes": dict(built.memory_bytes),
                "profiles": manifest.model_dump(mode="json")["profiles"],
                "device": built.device.model_dump() if built.device else None,
                "notes": list(built.notes),
            },
        )

    def open(self, artifact: Path) -> TensorRTSession:
        """Open a plan on the first GPU, after checking its manifest.

        Raises:
            StageFailed: When the plan is damaged, or another version, flavour or device made it.
            BackendMissing: When TensorRT or a GPU is missing.
        """
        manifest = tensorrt_plan.read(artifact)
        library = tensorrt_library.load()
        tensorrt_plan.check_library(manifest, library)
        tensorrt_plugins.check(manifest.plugins, self.options.plugins, artifact.name)
        device = tensorrt_device.require()
        tensorrt_plan.check_device(manifest, library, device)
        plugins = list(self.options.plugins)
        if BUILTIN in manifest.plugins and BUILTIN not in plugins:
            plugins.append(BUILTIN)
        if BUILTIN in plugins:
            tensorrt_plugin_builtin.require_runtime()
        with collector.at_rest():
            tensorrt_plugins.load(library, plugins)
            return TensorRTSession(library, self.options, artifact, manifest, device)
