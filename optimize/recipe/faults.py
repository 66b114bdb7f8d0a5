"""Collecting every fault of a recipe, each once and none that follows from another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from optimize.errors import Fault, RecipeError
from optimize.recipe.nodes import Place

Path = tuple[str | int, ...]
"""A key's path: ("passes", 2, "quantize.int8", "activations")."""


def spelled(path: Path) -> str:
    """A path as messages show it: `passes[2].quantize.int8.activations`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'fuse.attention'?" when one is near, "; known: a, b" when few, else nothing."""
    names = list(dict.fromkeys(known))
    near = nearest(name, names)
    if near:
        return f"; did you mean '{near}'?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 12 else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is near."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


class Faults:
    """A list of faults that keeps the first of those on the same key or below it."""

    def __init__(self) -> None:
        self._found: dict[Path, list[Fault]] = {}

    def add(self, path: Path, message: str, place: Place) -> None:
        """Note a fault unless the key, or one that holds it, has one already."""
        if not self.covers(path):
            fault = Fault(spelled(path), message, file=place.file, line=place.line, column=place.column)
            self._found.setdefault(path, []).append(fault)

    def covers(self, path: Path) -> bool:
        """Whether the key or one that holds it has a fault."""
        return any(path[:length] in self._found for length in range(1, len(path) + 1))

    def touches(self, path: Path) -> bool:
        """Whether the key, one that holds it or one below it has a fault."""
        return self.covers(path) or any(other[: len(path)] == path for other in self._found)

    def extend(self, faults: Iterable[Fault]) -> None:
        """Take over faults found elsewhere."""
        for fault in faults:
            self._found.setdefault((fault.path, fault.file, fault.line), []).append(fault)

    def raise_any(self) -> None:
        """Raise all of them, in the order they stand in the files.

        Raises:
            RecipeError: When there are any.
        """
        found = [fault for faults in self._found.values() for fault in faults]
        if found:
            raise RecipeError(sorted(found, key=lambda fault: (fault.file, fault.line, fault.column)))
