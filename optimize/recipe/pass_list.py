"""`passes:`: names and options to checked `PassSpec`s. Imports only the passes that are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from optimize.recipe.explaining import validate
from optimize.recipe.faults import Faults, Path, did_you_mean
from optimize.recipe.model import PassSpec
from optimize.recipe.nodes import Node, Place
from optimize.recipe.rebasing import rebase

if TYPE_CHECKING:
    from passes.base import Pass

PASSES = "passes"


@dataclasses.dataclass(frozen=True)
class ReadPass:
    """One pass of a recipe.

    Attributes:
        spec: Its name and all its options, plain data.
        instance: The pass itself.
        path: Where the recipe names it, as a path of keys.
        place: Where the recipe names it, as a line.
    """

    spec: PassSpec
    instance: Pass
    path: Path
    place: Place


def read_passes(node: Node | None, base: FilePath, faults: Faults) -> tuple[ReadPass, ...]:
    """Every pass that could be read, in order; faults for the rest."""
    if node is None or node.value is None:
        return ()
    if not isinstance(node.value, tuple):
        faults.add((PASSES,), f"expected a list of passes, got {node.kind()}", node.place)
        return ()
    found: list[ReadPass] = []
    for index, item in enumerate(node.value):
        path = (PASSES, index)
        if faults.covers(path):
            continue
        named = _name_and_options(item, path, faults)
        if named is not None:
            found += _read(*named, path, base, faults)
    return tuple(found)


def spec_of(name: str, instance: Pass) -> PassSpec:
    """The pass as data, every option written out."""
    options: dict[str, Any] = instance.model_dump(mode="json")
    return PassSpec(name=name, options=options)


def _name_and_options(item: Node, path: Path, faults: Faults) -> tuple[str, Place, Node] | None:
    """A list item, `name` or `name: {option: value}`, in parts."""
    if isinstance(item.value, str):
        return item.value, item.place, Node({}, item.place)
    if not isinstance(item.value, dict):
        faults.add(path, f"expected a pass's name, or its name with options, got {item.kind()}", item.place)
        return None
    if len(item.value) != 1:
        keys = ", ".join(item.value) or "none"
        message = f"expected one pass, got {len(item.value)} keys ({keys}); indent options below the name"
        faults.add(path, message, item.place)
        return None
    ((name, options),) = item.value.items()
    return name, item.keys[name], options


def _read(name: str, place: Place, options: Node, path: Path, base: FilePath, faults: Faults) -> list[ReadPass]:
    from passes import registry

    if name in registry.ROOMS:
        return _read_room(name, place, options, path, base, faults)
    try:
        pass_class = registry.find(name)
    except registry.UnknownPass as error:
        message = str(error) if name in registry.names() else f"no pass is called '{name}'{_suggestion(name)}"
        faults.add(path, message, place)
        return []
    except ImportError as error:
        faults.add(path, f"the pass '{name}' needs a library that is not installed: {error}", place)
        return []
    instance = validate(pass_class, rebase(pass_class, options, base), (*path, name), faults)
    return [] if instance is None else [ReadPass(spec_of(name, instance), instance, path, place)]


def _read_room(
    room: str, place: Place, options: Node, path: Path, base: FilePath, faults: Faults
) -> list[ReadPass]:
    """A room's bare name stands for its default passes."""
    from passes import registry

    if options.value:
        names = [name for name in registry.names() if name.startswith(f"{room}.")]
        message = f"'{room}' stands for several passes and takes no options; name one: {', '.join(names)}"
        faults.add(path, message, place)
        return []
    try:
        names = list(registry.room_default(room))
    except registry.UnknownPass as error:
        faults.add(path, str(error), place)
        return []
    return [found for name in names for found in _read(name, place, Node({}, place), path, base, faults)]


def _suggestion(name: str) -> str:
    """The nearest pass; one whose last part is the name counts as nearest."""
    from passes import registry

    known = (*registry.ROOMS, *registry.names())
    same_stem = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    if same_stem:
        return f"; did you mean '{same_stem[0]}'?"
    return did_you_mean(name, known) or "; 'optimize passes ls' lists them"
