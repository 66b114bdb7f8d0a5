"""A container file that serves the repository: a versioned image with a health check, run without privileges."""

from __future__ import annotations

import importlib.metadata

from optimize.bundle.triton.options import ServingOptions
from optimize.report import wording
from optimize.report.model import Report

SERVER = "25.10-py3"
"""Tag of the server's image; a TensorRT plan needs the image whose TensorRT built it."""


def render(report: Report, name: str, options: ServingOptions) -> str:
    """The file's text."""
    packages = _packages(report, options)
    install = f"\nRUN pip install --no-cache-dir {' '.join(packages)}\n" if packages else ""
    return f"""\
# Build beside the folder `models` (the docker format keeps the health check):
#   podman build --format docker -t {name}:{options.version} .
# Run:  podman run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 {name}:{options.version}   (--gpus all for a GPU)
ARG TRITON={SERVER}
FROM nvcr.io/nvidia/tritonserver:${{TRITON}}

LABEL org.opencontainers.image.title="{_label(name)}" \\
      org.opencontainers.image.version="{options.version}" \\
      org.opencontainers.image.description="{_label(report.name)}" \\
      org.opencontainers.image.created="{_label(report.started_at)}" \\
      com.model-optimize.recipe.sha256="{_label(report.recipe_sha256)}"
{install}
COPY --chown=root:root models /models
USER triton-server
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=2s --start-period=120s \\
  CMD curl --fail --silent http://localhost:8000/v2/health/ready || exit 1
# Explicit control: a new version is loaded by request, and serves once it is warm.
ENTRYPOINT ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit", "--load-model=*"]
"""


def _packages(report: Report, options: ServingOptions) -> list[str]:
    found = []
    if options.backend == "python":
        for package in ("numpy", "onnxruntime"):
            version = report.environment.libraries.get(package)
            found.append(f"{package}=={version}" if version else package)
    if options.tokenizer is not None:
        try:
            found.append(f"tokenizers=={importlib.metadata.version('tokenizers')}")
        except importlib.metadata.PackageNotFoundError:
            found.append("tokenizers")
    if options.tokenizer is not None and not any(item.startswith("numpy") for item in found):
        found.append("numpy")
    return found


def _label(text: str) -> str:
    return wording.one_line(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
