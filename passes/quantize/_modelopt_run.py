"""Runs ModelOpt's ONNX quantization in a process of its own and brings its model back, or says why there is none.

ModelOpt logs to the console, writes files beside its input, patches ONNX Runtime, and on some graphs goes on after
a failure: its noise goes to a file, its files to a scratch folder, and what it does not say is looked for here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from passes import array_files, saving
from passes.base import PassContext, PassFailed

MISSING = 'NVIDIA ModelOpt is not installed. Install it with: pip install "model-optimize[modelopt]"'

CHILD = Path(__file__).with_name("_modelopt_child.py")

ONE_FILE_BYTES = 1_500_000_000
"""Larger models are handed over and given back with their weights in a file of their own."""


@dataclasses.dataclass(frozen=True)
class Produced:
    """What ModelOpt made.

    Attributes:
        model: Its model; weights in memory, or in the scratch folder.
        seconds: Wall time of its process.
        version: Of ModelOpt.
    """

    model: ir.Model
    seconds: float
    version: str


def missing() -> str | None:
    """How to install ModelOpt, or None when it is here."""
    return MISSING if importlib.util.find_spec("modelopt") is None else None


@contextlib.contextmanager
def produce(
    model: ir.Model, options: Mapping[str, Any], context: PassContext, *, calibrated: bool, minutes: float
) -> Iterator[Produced]:
    """Let ModelOpt quantize `model`, which stays as it is.

    Args:
        model: The floating-point model; every node has a name.
        options: Further arguments of `modelopt.onnx.quantization.quantize`.
        context: Calibration data and a folder for files.
        calibrated: Whether ModelOpt needs the calibration data (it would take random numbers without).
        minutes: When to give up.

    Yields:
        Its model; files in it live as long as the context, where that has a scratch folder.

    Raises:
        PassFailed: When ModelOpt is missing, stops, takes too long or writes nothing.
    """
    reason = missing()
    if reason:
        raise PassFailed(reason)
    kept = context.scratch is not None
    folder = Path(tempfile.mkdtemp(prefix="modelopt-", dir=context.scratch))
    try:
        saving.save(model, folder / "model.onnx")
        request = {
            "model": str(folder / "model.onnx"),
            "output": str(folder / "quantized.onnx"),
            "calibration": str(_write_batches(folder / "calibration", context)) if calibrated else None,
            "options": {**options, "use_external_data_format": _size(model) > ONE_FILE_BYTES},
        }
        seconds = _run(folder, request, context, minutes)
        made = ir.load(folder / "quantized.onnx")
        if not kept:
            ir.external_data.load_to_model(made)
        yield Produced(made, seconds, importlib.metadata.version("nvidia-modelopt"))
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, request: Mapping[str, Any], context: PassContext, minutes: float) -> float:
    """Run the program to its end; gives its seconds."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    started = time.monotonic()
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    log = folder / "modelopt.log"
    with open(log, "wb") as output:
        # -P: this file's folder holds modules of ours that would hide others of the same name.
        process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(folder / "request.json")],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment,
        )  # fmt: skip
        try:
            while process.poll() is None:
                spent = time.monotonic() - started
                if spent > 60 * minutes:
                    raise PassFailed(
                        f"modelopt: ModelOpt has not finished within {minutes:g} minutes. Raise `minutes`, give "
                        "fewer calibration samples, or use our own pass for this format."
                    )
                context.progress("ModelOpt quantizes", int(spent), 0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    if process.returncode != 0:
        raise PassFailed(
            f"modelopt: ModelOpt stopped: {_last_words(log, process.returncode)}. Use another calibration or "
            "algorithm, name the layer under skip, or use our own pass for this format."
        )
    if not (folder / "quantized.onnx").is_file():
        raise PassFailed(f"modelopt: ModelOpt ended without writing a model: {_last_words(log, 0)}.")
    return time.monotonic() - started


def _last_words(log: Path, code: int) -> str:
    """The exception that a Python program's output ends with, or its last line."""
    if code < 0:
        return f"its process was ended by signal {-code} (out of memory?)"
    lines = [
        line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[traces[-1] + 1 :] if traces else lines[-1:]
    first = next((number for number, line in enumerate(after) if not line.startswith(" ")), 0)
    said = " ".join(" ".join(after[first:]).split())
    return said[:300].rstrip(".") or f"exit code {code}"


def _write_batches(folder: Path, context: PassContext) -> Path:
    """The calibration batches as files; only one is in memory at a time."""
    calibration = context.calibration
    if calibration is None or calibration.samples == 0:
        raise PassFailed(
            "modelopt: there is no calibration data, and ModelOpt would take random numbers instead. "
            "Add `calibration:` to the recipe."
        )
    folder.mkdir()
    for number, feeds in enumerate(calibration.feeds()):
        _refuse_not_finite(feeds, number)
        array_files.write(folder / f"{number:08d}.npz", feeds)
    return folder


def _refuse_not_finite(feeds: Mapping[str, Any], number: int) -> None:
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PassFailed(
                f"modelopt: input '{name}' holds NaN or infinity in calibration batch {number + 1}, which ModelOpt "
                "would learn ranges from. Mend the calibration data."
            )


def _size(model: ir.Model) -> int:
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None)
