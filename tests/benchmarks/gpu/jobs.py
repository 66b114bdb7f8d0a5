"""Exporting a case and building its variants, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
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


def build(
    variant: variants.Variant,
    model: Path,
    feeds: Path,
    folder: Path,
    target: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Build a variant in `folder`, in a process of its own.

    Returns:
        Its result, or {"failed": why} with the last line it wrote.
    """
    folder.mkdir(parents=True)
    job = {
        "model": str(model),
        "steps": variant.steps,
        "target": target,
        "feeds": str(feeds),
        "options": dict(variant.options),
    }
    path, result_path, log_path = folder / "JOB.json", folder / "RESULT.json", folder / "log.txt"
    path.write_text(json.dumps(job))
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    with log_path.open("wb") as log:
        try:
            code = subprocess.run(
                [sys.executable, str(HERE / "build_one.py"), str(path)],
                stdout=log, stderr=log, env=environment, timeout=seconds, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"not finished in {seconds:.0f} s"}
    if result_path.is_file():
        result: dict[str, Any] = json.loads(result_path.read_text())
        return result if code == 0 else result | {"note": f"its trial ended with exit code {code}"}
    lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    return {"failed": f"exit code {code}: {lines[-1] if lines else 'no output'}"}


def relative_error(folder: Path, reference: Tensor) -> float:
    """‖y − reference‖ / ‖reference‖ of a build's trial run; reference in float32."""
    with np.load(folder / "outputs.npz") as archive:
        outputs = torch.from_numpy(archive["y"].astype(np.float32))
    expected = reference.float().cpu()
    return float((outputs - expected).norm() / expected.norm())
