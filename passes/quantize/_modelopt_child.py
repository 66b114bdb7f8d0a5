"""Runs ModelOpt's ONNX quantization; started as a program of its own by `_modelopt_run`, never imported.

ModelOpt patches ONNX Runtime's classes, changes the lists it is given, logs to the console and writes files beside
its input: all of that ends with this process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Batches:
    """The calibration batches as ModelOpt reads them: one at a time, each with its own shape."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.npz"))
        self._next: Iterator[dict[str, Any]] = self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        for file in self._files:
            with np.load(file, allow_pickle=False) as stored:
                yield dict(stored)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None after the last."""
        return next(self._next, None)

    def get_first(self) -> dict[str, Any]:
        """The first batch; the reading goes on where it was."""
        return next(self._read())

    def rewind(self) -> None:
        """Start again."""
        self._next = self._read()

    def __len__(self) -> int:
        return len(self._files)


def main() -> None:
    """Read the request named on the command line, quantize."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = Path(sys.argv[1])
    asked = json.loads(request.read_text(encoding="utf-8"))
    from modelopt.onnx.quantization import quantize
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(Batches, CalibrationDataReader):  # type: ignore[misc]
        """ModelOpt checks for this base class."""

    batches = Reader(Path(asked["calibration"])) if asked["calibration"] else None
    quantize(
        asked["model"], output_path=asked["output"], calibration_data_reader=batches, calibration_eps=["cpu"],
        high_precision_dtype="fp32", log_level="WARNING", **asked["options"],
    )  # fmt: skip


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: its end is ours, however it died."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
