"""The built-in plugin's kernels against NumPy: in Triton's interpreter everywhere, compiled where a GPU is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optimize.engines import tensorrt_device

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason='the kernels are in Triton: pip install "model-optimize[tensorrt-plugin]"',
)

CASES = {
    "one row": (1, 16, 1024, 128),
    "one row, uneven in every way": (1, 10, 1000, 128),
    "one row, blocks of 16": (1, 8, 1040, 16),
    "one row, blocks of 256": (1, 8, 512, 256),
    "two rows, K in four parts": (2, 64, 512, 128),
    "sixteen rows, many channels": (16, 8192, 128, 128),
    "sixteen rows, uneven in every way": (16, 70, 200, 64),
    "seventeen rows, K in two parts": (17, 64, 256, 128),
    "sixty-four rows": (64, 32, 128, 32),
    "a hundred rows, two tiles": (100, 70, 300, 128),
}
"""Rows, N, K and the block."""

Case = dict[str, np.ndarray]


def case(rows: int, n: int, k: int, block: int) -> Case:
    rng = np.random.default_rng(rows * n + k)
    blocks = -(-k // block)
    codes = rng.integers(1, 256, (n, blocks * block), dtype=np.uint8)
    codes[:, k:] = 77  # What fills the last block must not count.
    scales = (rng.random((n, blocks)) * 0.01 + 0.001).astype(np.float16)
    x = rng.standard_normal((rows, k)).astype(np.float16)
    return {"x": x, "codes": codes.reshape(n, blocks, block), "scales": scales}


def expected(given: Case) -> np.ndarray:
    codes, scales, x = (given[part].astype(np.float64) for part in ("codes", "scales", "x"))
    weights = ((codes - 128) * scales[:, :, None]).reshape(len(codes), -1)[:, : x.shape[1]]
    return x @ weights.T


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


LIMIT = 2**-11
"""float16 keeps 11 significant bits and the sums are float32, so that rounding y is all that is lost."""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder: Path = tmp_path_factory.mktemp("kernels")
    arrays = {f"{name}.{part}": value for name, sizes in CASES.items() for part, value in case(*sizes).items()}
    np.savez(folder / "cases.npz", **arrays)
    command = [sys.executable, "-m", "tests.support.tensorrt_plugin.interpret", "cases.npz", "results.npz"]
    root = Path(__file__).parents[2]
    command[3:] = [str(folder / name) for name in command[3:]]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as results:
        return {name: results[name] for name in results.files}


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_compute_what_the_codes_stand_for(
    name: str, interpreted: dict[str, np.ndarray]
) -> None:
    wanted = expected(case(*CASES[name]))
    assert relative(interpreted[name], wanted) < LIMIT
    assert relative(interpreted[name] * np.float16(1.1), wanted) > 50 * LIMIT


def test_kernels_compile_without_a_gpu_and_fit_the_smallest_gpu_that_a_plan_may_meet(tmp_path: Path) -> None:
    sizes = [(16, 4096, 14336, 128), (64, 4096, 4096, 128), (64, 4096, 4096, 256), *CASES.values()]
    cases = [(capability, *size) for capability, size in zip([80, 86, 89, 90] * 4, sizes, strict=False)]
    words = [",".join(map(str, case)) for case in cases]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tensorrt_plugin.compiled", *words],
        cwd=Path(__file__).parents[2], env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout.splitlines()[-1])
    assert len(shared) == len(cases)
    assert max(shared) <= 99 << 10  # CUDA C++ Programming Guide, technical specifications: 8.6 and 8.9.


@pytest.mark.skipif(tensorrt_device.find() is None, reason="no GPU here")
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernels_compute_what_the_codes_stand_for(name: str) -> None:
    import torch

    from optimize.engines.tensorrt_plugin_choice import workspace_bytes
    from optimize.engines.tensorrt_plugin_kernels import launch

    rows, n, k, block = CASES[name]
    given = case(rows, n, k, block)
    x, codes, scales = (torch.from_numpy(given[part]).cuda() for part in ("x", "codes", "scales"))
    y = torch.full((rows, n), float("nan"), dtype=torch.float16, device="cuda")
    space = torch.empty(max(1, workspace_bytes(rows, n, codes.shape[1], block) // 4), device="cuda")
    launch(x, codes, scales, y, space, rows, n, k, block)
    assert relative(y.cpu().numpy(), expected(given)) < LIMIT
