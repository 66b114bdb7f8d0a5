"""What every engine is: it says whether it can run here, builds an artifact, and opens it as a session."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import pydantic
from pydantic import JsonValue

if TYPE_CHECKING:
    import numpy as np

Feeds = Mapping[str, "np.ndarray[Any, Any]"]
Progress = Callable[[str, int, int], None]
"""Called with (what is going on, steps done, steps in all); in all 0 when unknown."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: As the user named it.
        dtype: NumPy's (or ml_dtypes') name: "float32", "int64", "bfloat16".
        shape: An int per fixed axis, a name per dynamic axis ("batch"), None per unnamed one.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True)
class AxisRange:
    """The range of a dynamic axis: engines build for it, checks run at its ends."""

    minimum: int
    typical: int
    maximum: int


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file or folder an engine made, with what is needed to trust it again.

    Attributes:
        path: The file (a main file when there are several).
        kind: Such as "onnx", "onnxruntime", "tensorrt-plan", "torch".
        sha256: Of the main file's bytes, hexadecimal.
        size_bytes: Of all its files together.
        made_by: Library and version: "onnxruntime 1.32.0".
        details: Engine's own facts, JSON-ready: layers, providers, node placement, warnings.
    """

    path: Path
    kind: str
    sha256: str
    size_bytes: int
    made_by: str
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


PATH: dict[str, JsonValue] = {"format": "path"}
"""Marks an option that names a file; a relative one starts from the recipe that says it."""

PATH_OR_NAME: dict[str, JsonValue] = {"format": "path-or-name"}
"""Marks an option that may also be a name without a folder, which the system's loader looks up."""


class EngineOptions(pydantic.BaseModel):
    """Base of each engine's options: the keys under `engine:` in a recipe."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    written: ClassVar[frozenset[str]] = frozenset()
    """Options that name a file which the engine writes."""

    def native_code(self) -> tuple[str, ...]:
        """What these options name that is loaded as native code, or may be: "plugins: ./file.so"."""
        return ()

    def placed(self, base: Path) -> Self:
        """These options with each relative path made to start from `base`."""
        moved: dict[str, Any] = {}
        for name, form in self._paths():
            value = getattr(self, name)
            moved[name] = (
                tuple(_placed(item, base, form) for item in value)
                if isinstance(value, tuple)
                else value and _placed(value, base, form)
            )
        return self.model_copy(update=moved)

    def files_read(self) -> tuple[Path, ...]:
        """Files that these options name for the engine to read, in order; names for the loader apart."""
        found: list[Path] = []
        for name, form in self._paths():
            value = getattr(self, name)
            given = value if isinstance(value, tuple) else (value,)
            if name not in self.written:
                found += [Path(item) for item in given if item and is_path(item, form)]
        return tuple(found)

    def _paths(self) -> Iterator[tuple[str, str]]:
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra in (PATH, PATH_OR_NAME):
                yield name, str(dict(field.json_schema_extra)["format"])


def is_path(text: str, form: str) -> bool:
    """Whether an option marked with the format `form` holds a path, not a name."""
    return form == PATH["format"] or "/" in text


def _placed(text: str, base: Path, form: str) -> str:
    return os.path.normpath(base.absolute() / text) if is_path(text, form) else text


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What an engine is asked to build.

    Attributes:
        model: Path of the ONNX file (external data beside it).
        directory: An empty folder to write into.
        ranges: Range of each named dynamic axis.
        cache: A folder shared between builds (timing caches); None: keep nothing.
        sample: One real batch to check the built engine on; None: random numbers.
    """

    model: Path
    directory: Path
    ranges: Mapping[str, AxisRange] = dataclasses.field(default_factory=dict)
    cache: Path | None = None
    sample: Feeds | None = None


class Session(Protocol):
    """An opened artifact, ready to run. Use as a context manager."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on host arrays; every declared output comes back, by name."""
        ...

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """A call that runs once on these feeds with all copying and binding done beforehand, to be timed.

        The call returns when the result is there (device work synchronised).
        """
        ...

    def placement(self) -> Mapping[str, int]:
        """Nodes or layers per executor that really ran them: {"CPUExecutionProvider": 112}."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """One way to run a model. Constructed from its options; cheap until `build` or `open`."""

    name: ClassVar[str]

    def check(self) -> str | None:
        """Why this engine cannot build here, with what to install, or None."""
        ...

    def check_run(self) -> str | None:
        """Why what it builds cannot be opened and run here, with what to install, or None."""
        ...

    def build(self, request: BuildRequest, progress: Progress) -> Artifact:
        """Build from an ONNX file.

        Raises:
            StageFailed: With the node and source module where the engine names one.
            BackendMissing: When a library or device is missing.
        """
        ...

    def open(self, artifact: Path) -> Session:
        """Open what `build` made (its main file).

        Raises:
            StageFailed: When the file is damaged, or was made by another version or for another device.
            BackendMissing: When a library or device is missing.
        """
        ...


def missing_inputs(specs: Sequence[TensorSpec], feeds: Feeds) -> str | None:
    """One sentence when feeds do not fit the inputs (missing, unknown, wrong dtype or rank), else None."""
    for spec in specs:
        if spec.name not in feeds:
            return f"input '{spec.name}' is missing; given: {', '.join(feeds) or 'none'}."
        array = feeds[spec.name]
        if str(array.dtype) != spec.dtype:
            return f"input '{spec.name}': expected {spec.dtype}, got {array.dtype}."
        if array.ndim != len(spec.shape):
            return (
                f"input '{spec.name}': expected rank {len(spec.shape)}, "
                f"got {array.ndim} (shape {list(array.shape)})."
            )
        for axis, (expected, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
            if isinstance(expected, int) and expected != got:
                return f"input '{spec.name}': axis {axis} must be {expected}, got {got}."
    names = {spec.name for spec in specs}
    for name in feeds:
        if name not in names:
            return f"no input is called '{name}'; the model has: {', '.join(sorted(names))}."
    return None


EngineKind = Literal["onnxruntime", "tensorrt", "torch"]
