"""A Python function that builds a PyTorch module with example inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from optimize import user_code
from optimize.engines.base import Progress, Session
from optimize.errors import UsageError
from optimize.sources.axes import RangeLike
from optimize.sources.base import Capture
from optimize.sources.torch_capture import capture_module
from optimize.sources.torch_model import TorchModel, torch_model


class TorchSource:
    """A factory: it returns `{"module", "inputs", "dynamic_axes", "output_names", "ranges"}`.

    Args:
        factory: "file.py:function" or "package.module:function".
        arguments: Keyword arguments for it.
        opset: Opset to export at; None leaves the exporter's own choice.
        ranges: Axis name → range; wins over the factory's.
        files: Further files the factory reads, relative to `base`.
        base: Folder that relative files start from.
    """

    kind: ClassVar[str] = "torch"

    def __init__(
        self,
        *,
        factory: str,
        arguments: Mapping[str, Any] | None = None,
        opset: int | None = None,
        ranges: Mapping[str, RangeLike] | None = None,
        files: Sequence[str] = (),
        base: Path = Path(),
    ) -> None:
        self._factory, self._arguments = factory, dict(arguments or {})
        self._opset, self._ranges = opset, dict(ranges or {})
        self._files, self._base = tuple(files), base
        self._built: TorchModel | None = None

    def check(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return 'PyTorch is not installed. Install it with: pip install "model-optimize[torch]"'
        try:
            self.files()
        except UsageError as error:
            return str(error)
        return None

    def files(self) -> tuple[Path, ...]:
        own = user_code.file_of(self._factory, self._base, what="factory")
        further = tuple(self._base / name for name in self._files)
        for path in further:
            if not path.is_file():
                raise UsageError(f"source.files: there is no file '{path.name}' in {path.parent}.")
        return (*((own,) if own else ()), *further)

    def capture(self, progress: Progress) -> Capture:
        progress(f"run {self._factory}", 0, 0)
        return capture_module(self.torch_model(), self._opset, progress)

    def original(
        self, *, threads: int | None = None, compiled: bool = False, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Session:
        return self.torch_model().session(threads=threads, compiled=compiled, device=device)

    def torch_model(self) -> TorchModel:
        """The module, made once."""
        if self._built is None:
            what = f"factory '{self._factory}'"
            file = user_code.file_of(self._factory, self._base, what="factory")
            function = user_code.load(self._factory, self._base, what="factory")
            built = user_code.call(function, self._arguments, what=what, file=file)
            self._built = torch_model(built, self._ranges, what=what)
        return self._built
