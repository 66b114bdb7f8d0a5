"""Functions that a user names in a recipe: finding them, calling them, and saying where they went wrong."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from optimize.errors import BackendMissing, OptimizeError, UsageError

FORM = 'Write it as "file.py:function" or "package.module:function".'


def split(reference: str, *, what: str) -> tuple[str, str]:
    """ "file.py:function" → ("file.py", "function").

    Raises:
        UsageError: When it does not have that form.
    """
    module, colon, function = reference.rpartition(":")
    if not colon or not module or not function.isidentifier():
        raise UsageError(f"{what} '{reference}' names no function.", hint=FORM)
    return module, function


def is_reference(text: str) -> bool:
    """Whether a text has the form "file.py:function" or "package.module:function"."""
    module, colon, function = text.rpartition(":")
    if not colon or not function.isidentifier():
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def file_of(reference: str, base: Path, *, what: str) -> Path | None:
    """The file a reference lies in, found without running any of the user's code; None when unknown.

    Raises:
        UsageError: When a file is named and does not exist, or a module cannot be found.
    """
    module, _ = split(reference, what=what)
    if module.endswith(".py"):
        path = base / module
        if not path.is_file():
            raise UsageError(f"{what}: there is no file '{module}' in {base}.")
        return path
    top = module.partition(".")[0]
    with _importable(base):
        spec = sys.modules[top].__spec__ if top in sys.modules else importlib.util.find_spec(top)
    if spec is None:
        raise UsageError(f"{what}: no module is called '{top}'.", hint="Install it, or name a file.")
    for folder in spec.submodule_search_locations or []:
        inner = Path(folder, *module.split(".")[1:])
        for candidate in (inner.with_suffix(".py"), inner / "__init__.py"):
            if candidate.is_file():
                return candidate
    return Path(spec.origin) if spec.origin and module == top and Path(spec.origin).is_file() else None


def load(reference: str, base: Path, *, what: str) -> Callable[..., Any]:
    """Import the user's file or module and return the function.

    Args:
        reference: "file.py:function" (relative to `base`) or "package.module:function".
        base: Folder that a relative file starts from, and where modules are looked for last.
        what: How to call it in messages: "factory", "calibration data".

    Raises:
        UsageError: When it cannot be found, cannot be imported, or is not callable.
    """
    module_name, function_name = split(reference, what=what)
    path = file_of(reference, base, what=what)
    with errors_of_user(path, what=f"{what} '{reference}' cannot be imported"), _importable(base):
        if module_name.endswith(".py"):
            assert path is not None
            module = _import_file(path)
        else:
            module = importlib.import_module(module_name)
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(
            f"{what}: '{module_name}' has no function '{function_name}'.",
            hint=f"It has: {', '.join(sorted(names)) or 'none'}.",
        )
    if not callable(function):
        raise UsageError(f"{what}: '{reference}' is a {type(function).__name__}, not a function.")
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], arguments: Mapping[str, Any], *, what: str, file: Path | None = None) -> Any:
    """Call a user's function with keyword arguments; what it prints goes to stderr.

    Raises:
        UsageError: When the arguments do not fit it, or it raises (with the line in the user's file).
    """
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"{what}: its arguments do not fit: {error}.") from error
    with errors_of_user(file, what=f"{what} failed"):
        return function(**arguments)


@contextlib.contextmanager
def errors_of_user(file: Path | None, *, what: str) -> Iterator[None]:
    """Turn what a user's code raises into a `UsageError` that names the exception and the user's line.

    Raises:
        UsageError: For any exception of the user's code.
        BackendMissing: When it imports a library that is not installed.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OptimizeError:
        raise
    except ModuleNotFoundError as error:
        place = _place(error, file)
        raise BackendMissing(f"{what}: it needs the library '{error.name}'{place}, not installed.") from error
    except (Exception, SystemExit) as error:
        text = _first_line(str(error))
        described = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise UsageError(f"{what}: {described}{_place(error, file)}.") from error


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".")[:300] if text.strip() else ""


def _place(error: BaseException, file: Path | None) -> str:
    """Where in the user's file it happened, " (model.py:12)", or the innermost frame where unknown."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    frame = own[-1] if own else (frames[-1] if frames else None)
    return f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""


def _import_file(path: Path) -> ModuleType:
    status = path.stat()
    identity = hashlib.sha256(f"{path.resolve()}\0{status.st_mtime_ns}\0{status.st_size}".encode())
    name = f"_user_{path.stem}_{identity.hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path.name}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up by name
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for neighbours the file imports, now or inside its functions; last, so
        # that a neighbour never hides an installed library
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(base: Path) -> Iterator[None]:
    folder = str(base.resolve())
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    yield
