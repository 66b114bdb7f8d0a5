"""Finding passes by name: a file under `passes/` is a pass, and packages may add more by entry points."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from pathlib import Path

from passes.base import Pass

ROOMS = ("clean", "fuse", "cast", "quantize", "surgery")
ENTRY_POINTS = "model_optimize.passes"


class UnknownPass(LookupError):
    """No pass has this name."""


@functools.cache
def names() -> tuple[str, ...]:
    """Every pass's name ("fuse.attention"), in room order, then entry points. Imports no pass."""
    root = Path(__file__).parent
    found = [
        f"{room}.{path.stem}"
        for room in ROOMS
        for path in sorted((root / room).glob("*.py"))
        if not path.stem.startswith("_")
    ]
    found += sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))
    return tuple(dict.fromkeys(found))


@functools.cache
def find(name: str) -> type[Pass]:
    """The class of the pass called `name`.

    Raises:
        UnknownPass: When no file and no entry point has this name.
    """
    room, _, stem = name.partition(".")
    if room in ROOMS and stem.isidentifier() and (Path(__file__).parent / room / f"{stem}.py").is_file():
        module = importlib.import_module(f"passes.{room}.{stem}")
        classes = [
            item
            for item in vars(module).values()
            if inspect.isclass(item)
            and issubclass(item, Pass)
            and item.__module__ == module.__name__
            and not inspect.isabstract(item)
        ]
        if len(classes) != 1:
            raise UnknownPass(f"passes/{room}/{stem}.py must hold exactly one pass, found {len(classes)}")
        return classes[0]
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            loaded: type[Pass] = point.load()
            return loaded
    raise UnknownPass(f"no pass is called '{name}'")


def name_of(pass_class: type[Pass]) -> str:
    """The recipe name of a pass class: `passes.fuse.attention.FuseAttention` is "fuse.attention"."""
    module = pass_class.__module__
    if module.startswith("passes."):
        return module.removeprefix("passes.")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.value.partition(":")[0] == module:
            return point.name
    return module


def room_default(room: str) -> tuple[str, ...]:
    """The passes that a room's bare name stands for in a recipe ("clean"), in order.

    Raises:
        UnknownPass: When the room does not exist or declares no `DEFAULT`.
    """
    if room not in ROOMS:
        raise UnknownPass(f"no room is called '{room}'")
    default = getattr(importlib.import_module(f"passes.{room}"), "DEFAULT", None)
    if default is None:
        raise UnknownPass(f"'{room}' has no default list; name its passes one by one")
    return tuple(f"{room}.{stem}" for stem in default)
