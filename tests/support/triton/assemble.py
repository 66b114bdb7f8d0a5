"""Puts a Triton Inference Server together from the wheel of `nvidia-pytriton`.

Its Python backend was built for NumPy 1 (under NumPy 2 it reads every array as zeros, without an error), so it gets
an environment of its own, with this project's versions of everything else that models need.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

import filelock
import platformdirs

HERE = Path(__file__).parent


class CannotAssemble(Exception):
    """The server cannot be had here; the message says why."""


def assemble() -> Path:
    """Return the folder of a server whose Python backend fits this interpreter; kept after the first call.

    Raises:
        CannotAssemble: When this is not Linux on x86-64, the wheel cannot be had, or has no fitting stub.
    """
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        raise CannotAssemble(f"the wheel is for Linux on x86_64, this is {machine}")
    chosen = os.environ.get("MODEL_OPTIMIZE_TEST_CACHE")
    cache = Path(chosen) if chosen else platformdirs.user_cache_path("model-optimize-tests")
    digest = hashlib.sha256((HERE / "wheels.txt").read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"triton-{version}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                made = Path(scratch) / "made"
                command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
                command += ["--require-hashes", "--only-binary=:all:", "--disable-pip-version-check"]
                command += ["--target", str(made), "-r", str(HERE / "wheels.txt")]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise CannotAssemble(f"pip cannot install {HERE / 'wheels.txt'}: {done.stderr.strip()}")
                server = made / "pytriton" / "tritonserver"
                stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
                if not stub.is_file():
                    raise CannotAssemble(f"the server's Python backend has no stub for Python {version}")
                shutil.copy2(stub, server / "backends" / "python")
                _environment(made / "env")
                os.rename(made, folder)
    return folder / "pytriton" / "tritonserver"


def _environment(folder: Path) -> None:
    venv.create(folder, with_pip=True, symlinks=True)
    packages = ["numpy<2", *(f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "tokenizers"))]
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    done = subprocess.run([*command, "--disable-pip-version-check", *packages], capture_output=True, text=True)
    if done.returncode:
        raise CannotAssemble(f"pip cannot install {', '.join(packages)}: {done.stderr.strip()}")
