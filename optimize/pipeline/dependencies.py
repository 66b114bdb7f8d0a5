"""Files that the user's code read while a stage ran, so that a change in one of them is noticed."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

from optimize.pipeline import digests


class Reads:
    """Watches which files Python opens for reading, from `start` on.

    Files of the standard library, of installed packages and of the system are left out: library versions are
    part of every key already. What native code maps by itself is not seen; recipes name such files under
    `source.files`.
    """

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._is_watching = False

    def start(self) -> None:
        """Begin watching; there is no end, the process is the stage's own."""
        self._is_watching = True
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not self._is_watching:
            return
        path, mode = arguments[0], arguments[1]
        if isinstance(path, str | os.PathLike) and (mode is None or "r" in str(mode)):
            self._paths.add(os.fspath(path))

    def digests(self, exclude: Path) -> dict[str, str]:
        """Digest of every watched file that still exists, by absolute path."""
        self._is_watching = False
        left_out = [*_installed(), Path("/proc"), Path("/sys"), Path("/dev"), Path("/etc"), Path("/usr")]
        left_out = [path.resolve() for path in (*left_out, exclude)]
        found: dict[str, str] = {}
        modules = [getattr(module, "__file__", None) for module in tuple(sys.modules.values())]
        for name in sorted(self._paths | {str(module) for module in modules if module}):
            path = Path(name).resolve()
            if path.suffix == ".pyc" or not path.is_file():
                continue
            if any(path.is_relative_to(folder) for folder in left_out):
                continue
            found[str(path)] = digests.of_file(path)
        return found


def _installed() -> list[Path]:
    """Folders of the interpreter, of installed packages and of this project's own code."""
    names = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    names |= {*site.getsitepackages(), site.getusersitepackages(), sys.prefix, sys.base_prefix}
    import optimize
    import passes

    own = [Path(str(package.__file__)).parent for package in (optimize, passes)]
    return [Path(name) for name in names if name] + own
