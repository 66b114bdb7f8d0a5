"""Assembles an importable `tensorrt_rtx` from wheels that every package index carries.

NVIDIA's own `tensorrt-rtx` package fetches its libraries from another host. The same libraries travel in
ONNX Runtime's TensorRT-RTX plugin, and TensorRT's Python bindings drive them once a forwarding library
(`forward.c`) answers to the names the bindings look for. Engines build with it on a machine without a GPU.

    python -m tests.support.tensorrt_rtx.assemble      # prints the folder to put on PYTHONPATH
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock
import platformdirs

HERE = Path(__file__).parent
VERSION = "1.6.1.120"
"""Version of the RTX library inside the plugin's wheel: `getInferLib{Major,Minor,Patch,Build}Version`."""

WHEELS, FORWARD, ADDITION = "wheels.txt", "forward.c", "compute_capabilities.py"
FORWARDED = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
LIBRARIES = re.compile(r"onnxruntime_ep_nv_tensorrt_rtx/(libtensorrt_(?:onnxparser_)?rtx\.so\.1)\.\d+\.\d+")
BINDINGS = re.compile(r"tensorrt_bindings/(.+\.(?:py|so))")


class CannotAssemble(Exception):
    """The module cannot be put together here; the message says what is missing."""


def assemble() -> Path:
    """Return a folder that holds the package `tensorrt_rtx`, made on the first call and kept afterwards.

    The folder's name covers everything the result depends on, so a change here makes a new one. It lies in
    the user's cache (`MODEL_OPTIMIZE_TEST_CACHE` overrides where).

    Raises:
        CannotAssemble: When this is not Linux on x86-64, no C compiler exists or the wheels cannot be had.
    """
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        raise CannotAssemble(f"the wheels are for Linux on x86_64, this is {machine}")
    chosen = os.environ.get("MODEL_OPTIMIZE_TEST_CACHE")
    cache = Path(chosen) if chosen else platformdirs.user_cache_path("model-optimize-tests")
    parts = [(HERE / name).read_bytes() for name in (WHEELS, FORWARD, ADDITION, "assemble.py")]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    folder = cache / f"tensorrt_rtx-{VERSION}-cp{sys.version_info.major}{sys.version_info.minor}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                package = Path(scratch) / "made" / "tensorrt_rtx"
                package.mkdir(parents=True)
                for wheel in _download(Path(scratch) / "wheels"):
                    _unpack(wheel, package)
                _compile(package)
                # The ONNX parser opens the library by this name before it adds a plugin's layer.
                (package / "libtensorrt_rtx.so").symlink_to("libtensorrt_rtx.so.1")
                _complete(package)
                os.rename(package.parent, folder)
    return folder


def _download(folder: Path) -> list[Path]:
    """Fetch the wheels named in wheels.txt, each checked against its digest there."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check", "-r", str(HERE / WHEELS)]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotAssemble(f"pip cannot fetch the wheels in {HERE / WHEELS}: {done.stderr.strip()}")
    return sorted(folder.glob("*.whl"))


def _unpack(wheel: Path, package: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            kept = LIBRARIES.fullmatch(member) or BINDINGS.fullmatch(member)
            if kept is None:
                continue
            target = package / kept[1]
            target.parent.mkdir(exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            if target.suffix == ".py":
                target.write_text(_renamed(target.read_text()))


def _renamed(source: str) -> str:
    """The bindings' Python source, as the module `tensorrt_rtx` that tells the RTX library's version."""
    source = re.sub(r"^(\s*)import tensorrt as trt$", r"\1import tensorrt_rtx as trt", source, flags=re.M)
    source = source.replace("import tensorrt.plugin as trtp", "import tensorrt_rtx.plugin as trtp")
    return re.sub(r'^__version__ = ".*"$', f'__version__ = "{VERSION}"', source, flags=re.M)


def _complete(package: Path) -> None:
    """Add what TensorRT for RTX's own bindings have beyond TensorRT's."""
    shutil.copy(HERE / ADDITION, package)
    with (package / "__init__.py").open("a") as module:
        module.write("\nfrom .compute_capabilities import ComputeCapability, add_to\n\nadd_to(IBuilderConfig)\n")


def _compile(package: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotAssemble("no C compiler (cc, gcc, clang) on the PATH to build the forwarding libraries")
    for name in FORWARDED:
        command = [compiler, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}", "-o", str(package / name)]
        subprocess.run([*command, str(HERE / FORWARD), "-ldl"], check=True)


if __name__ == "__main__":
    sys.stdout.write(f"{assemble()}\n")
