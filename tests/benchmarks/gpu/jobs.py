"""Exporting a case and building its variants, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import variants
from torch import Tensor, nn

HERE = Path(__file__).parent


def export(module: nn.Module, x: Tensor, path: Path, opset: int | None) -> None:
    """Export a module in FP16 on the CPU, its one input called "x" and its output "y"."""
    program = torch.onnx.export(
        module, (x,), dynamo=True, input_names=["x"], output_names=["y"], opset_version=opset, verbose=False
    )
    assert program is not None
    program.save(path, external_data=True)


def start(
    variant: variants.Variant,
    model: Path,
    feeds: Path,
    folder: Path,
    target: Mapping[str, Any],
    plugins: Sequence[str],
) -> subprocess.Popen[bytes]:
    """Start building a variant in `folder`."""
    folder.mkdir(parents=True)
    job = {
        "model": str(model),
        "steps": variant.steps,
        "target": target,
        "feeds": str(feeds),
        "options": {"plugins": list(plugins) if variant.needs_plugins else []},
    }
    path = folder / "JOB.json"
    path.write_text(json.dumps(job))
    log = (folder / "log.txt").open("wb")
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "build_one.py"), str(path)], stdout=log, stderr=log, env=environment
    )


def finish(running: subprocess.Popen[bytes], folder: Path, until: float) -> dict[str, Any]:
    """Wait for a build; its result, or {"failed": the last line it wrote}."""
    try:
        code = running.wait(timeout=max(until - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
        return {"failed": "not finished in time"}
    result_path = folder / "RESULT.json"
    if result_path.is_file():
        result: dict[str, Any] = json.loads(result_path.read_text())
        return result if code == 0 else result | {"note": f"its trial ended with exit code {code}"}
    lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    return {"failed": f"exit code {code}: {lines[-1] if lines else 'no output'}"}


def relative_error(folder: Path, reference: Tensor) -> float:
    """‖y − reference‖ / ‖reference‖ of a build's trial run; reference in float32."""
    with np.load(folder / "outputs.npz") as archive:
        outputs = torch.from_numpy(archive["y"].astype(np.float32))
    expected = reference.float().cpu()
    return float((outputs - expected).norm() / expected.norm())
