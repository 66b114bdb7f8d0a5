"""A real Triton Inference Server on free ports, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.triton.assemble import assemble

READY_SECONDS = 90


@dataclass
class Server:
    """A running server.

    Attributes:
        http, grpc: "localhost:PORT".
        log: File with everything it said.
    """

    http: str
    grpc: str
    log: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serve(models: Path, log: Path, *arguments: str) -> Iterator[Server]:
    """Serve a folder of models until the block ends; returns once the server is ready.

    Raises:
        RuntimeError: When the server ends or is not ready in time; with the end of its log.
    """
    folder = assemble()
    http, grpc, metrics = _free_ports(3)
    library = sysconfig.get_config_var("LIBDIR")
    environment = {
        **os.environ,
        # The backend's interpreter takes its packages from the first python3 on the PATH, and no other setting.
        "PATH": os.pathsep.join((str(folder.parents[1] / "env" / "bin"), os.environ["PATH"])),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (library, os.environ.get("LD_LIBRARY_PATH")))),
    }
    command = [str(folder / "bin" / "tritonserver"), f"--model-repository={models}"]
    command += [f"--backend-directory={folder / 'backends'}", "--disable-auto-complete-config", "--log-verbose=0"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", *arguments]
    command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += [f"--backend-config=python,shm-region-prefix-name=optimize-{os.getpid()}-{http}"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(process, http, log)
            yield Server(f"localhost:{http}", f"localhost:{grpc}", log, process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(("E", "error"))] or lines[-20:]
    raise RuntimeError("the server did not become ready; it said:\n" + "\n".join(said))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
