"""Run the built-in plugin's kernels on the CPU, in Triton's interpreter.

    python -m tests.support.tensorrt_plugin.interpret CASES.npz RESULTS.npz

CASES holds x, codes and scales of each case as "NAME.x", "NAME.codes", "NAME.scales"; RESULTS holds y by name.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # Read when the kernels' module is imported.

import numpy as np
import torch

from optimize.engines.tensorrt_plugin_choice import workspace_bytes
from optimize.engines.tensorrt_plugin_kernels import launch


def main(cases: str, results: str) -> None:
    """Compute every case."""
    given = np.load(cases)
    found = {}
    for name in sorted({key.rpartition(".")[0] for key in given.files}):
        x, codes, scales = (torch.from_numpy(given[f"{name}.{part}"]) for part in ("x", "codes", "scales"))
        (rows, k), (n, blocks, block) = x.shape, codes.shape
        y = torch.full((rows, n), float("nan"), dtype=torch.float16)
        space = torch.full((max(1, workspace_bytes(rows, n, blocks, block) // 4),), float("nan"))
        launch(x, codes, scales, y, space, rows, n, k, block, assembly=False)
        found[name] = y.numpy()
    np.savez(results, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
